#!/usr/bin/env bash
# Checks that must hold before a change lands. Installs what the tests need: on Debian and its
# derivatives that takes root; elsewhere it names what is missing.
#
#   ./check.sh              format, lints, every test
#   ./check.sh fast         format, lints and unit tests
#   ./check.sh test [NAME]  every test, or one test file
#   ./check.sh simulate     random histories with faults and crashes; ARGUS_SIMULATIONS=5000 for longer
#   ./check.sh fuzz         the scan against its reference loop; ARGUS_FUZZ_RUNS=1000000 for longer
#   ./check.sh faults       crashes, pauses and lost connections of all servers; ARGUS_FAULT_ROUNDS=100 for longer
#   ./check.sh crash        kill -9 at each named point, ARGUS_CRASHES=100 times
set -euo pipefail
cd "$(dirname "$0")"

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null && return
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get install -y -q --no-install-recommends "$2" ||
            { apt-get update -q && apt-get install -y -q --no-install-recommends "$2"; }
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
    need openssl openssl
    need lz4 lz4
    need psql postgresql-client
    need pg_ctlcluster postgresql
    need setpriv util-linux
    need python3 python3
    need redis-server redis-server
    need chromium chromium
    need docker-compose docker-compose
    need prometheus prometheus
    need haproxy haproxy
    need javac default-jdk-headless
    test -e /usr/share/java/postgresql.jar || need the-jdbc-driver libpostgresql-jdbc-java
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv-is-missing python3-venv
}

# Clippy compiles our crates, and denies warnings: so one build serves lints and tests. `cargo clippy` would check all
# dependencies once more.
cargo_test() {
    cargo fmt --all --check
    CLIPPY_ARGS='--deny=warnings' RUSTC_WORKSPACE_WRAPPER="$(rustc --print sysroot)/bin/clippy-driver" \
        cargo test --workspace --locked "$@"
}

need cc gcc
# For librdkafka.
need make make
need g++ g++
case "${1:-all}" in
    all)
        tools_of_tests
        cargo_test
        ;;
    fast)
        cargo_test --lib --bins
        ;;
    test)
        tools_of_tests
        cargo_test ${2:+--test "$2"}
        ;;
    simulate)
        ARGUS_SIMULATIONS="${ARGUS_SIMULATIONS:-1000}" cargo_test --lib simulation -- --nocapture
        ;;
    fuzz)
        ARGUS_FUZZ_RUNS="${ARGUS_FUZZ_RUNS:-50000}" cargo_test --test fuzz -- --nocapture
        ;;
    faults)
        tools_of_tests
        ARGUS_FAULT_ROUNDS="${ARGUS_FAULT_ROUNDS:-10}" ARGUS_FAULT_SECONDS="${ARGUS_FAULT_SECONDS:-20}" \
            cargo_test --test faults -- --nocapture
        ;;
    crash)
        tools_of_tests
        ARGUS_CRASHES="${ARGUS_CRASHES:-100}" cargo_test --test crash -- --nocapture
        ;;
    *)
        echo "usage: ./check.sh [all | fast | test [NAME] | simulate | fuzz | faults | crash]" >&2
        exit 2
        ;;
esac
