#!/bin/sh
# Makes requirements/*.txt again from pyproject.toml and requirements/*.in; needs uv and a package index.
#   requirements/lock.sh             keeps every pin that still fits
#   requirements/lock.sh --upgrade   takes the newest (any other `uv pip compile` option works, too)
# Each lock holds the smaller ones it builds on with the same versions: runtime < speech < test < dev.
set -eu
cd -- "$(dirname -- "$0")/.."

lock() { # lock NAME INPUT...: compile, then put the direct requirements on top, for check.py to compare
    name=$1
    shift
    uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.11 \
        --output-file "requirements/$name.txt" "$@" >/dev/null
    python3 requirements/check.py --stamp "$name"
}

lock dev pyproject.toml --extra speech requirements/test.in requirements/dev.in "$@"
lock test pyproject.toml --extra speech requirements/test.in --constraint requirements/dev.txt
lock speech pyproject.toml --extra speech --constraint requirements/dev.txt
lock runtime pyproject.toml --constraint requirements/dev.txt
lock build requirements/build.in --constraint requirements/dev.txt "$@"
lock uv requirements/uv.in "$@"
lock clients requirements/clients.in "$@"
