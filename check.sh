#!/usr/bin/env bash
# Checks that must hold before a change lands. Installs what the tests need: on Debian and its
# derivatives that takes root; elsewhere it names what is missing.
#
#   ./check.sh              format, lints, every test
#   ./check.sh fast         format, lints and unit tests
#   ./check.sh test [NAME]  every test, or one test file
#   ./check.sh fuzz         the scan against its reference loop; ARGUS_FUZZ_RUNS=1000000 for longer
#   ./check.sh crash        kill -9 at each named point, ARGUS_CRASHES=100 times
set -euo pipefail
cd "$(dirname "$0")"

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null && return
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get install -y -q "$2" || { apt-get update -q && apt-get install -y -q "$2"; }
    else
        echo "please install $2" >&2
        exit 1
    fi
}

tools_of_tests() {
    need curl curl
    need gzip gzip
    need bzip2 bzip2
    need xz xz-utils
    need zstd zstd
    need lz4 lz4
    need psql postgresql-client
    need python3 python3
    need redis-server redis-server
    need javac default-jdk-headless
    test -e /usr/share/java/postgresql.jar || need the-jdbc-driver libpostgresql-jdbc-java
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv-is-missing python3-venv
}

lints() {
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- --deny warnings
}

need cc gcc
case "${1:-all}" in
    all)
        tools_of_tests
        lints
        cargo test --workspace --locked
        ;;
    fast)
        lints
        cargo test --workspace --locked --lib --bins
        ;;
    test)
        tools_of_tests
        cargo test --workspace --locked ${2:+--test "$2"}
        ;;
    fuzz)
        ARGUS_FUZZ_RUNS="${ARGUS_FUZZ_RUNS:-50000}" cargo test --workspace --locked --test fuzz -- --nocapture
        ;;
    crash)
        tools_of_tests
        ARGUS_CRASHES="${ARGUS_CRASHES:-100}" cargo test --workspace --locked --test crash -- --nocapture
        ;;
    *)
        echo "usage: ./check.sh [all | fast | test [NAME] | fuzz | crash]" >&2
        exit 2
        ;;
esac
