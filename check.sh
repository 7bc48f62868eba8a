#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, and every test.
# Installs what the tests need. On Debian and its kin that takes root; elsewhere
# it says what is missing.
set -euo pipefail
cd "$(dirname "$0")"

need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null && return
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get install -y -q "$2" || { apt-get update -q && apt-get install -y -q "$2"; }
    else
        echo "please install $2 (it has the command $1)" >&2
        exit 1
    fi
}
need cc gcc
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

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- --deny warnings
cargo test --workspace --locked
