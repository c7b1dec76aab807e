#!/usr/bin/env bash
# Formatting, lint, types, import contracts, then all tests, with the tools of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/pyright"
"$bin/lint-imports" --no-logo
# two files at a time: half of a test's time is waiting for servers, disks and other processes; threads that wait sleep
OMP_WAIT_POLICY=PASSIVE "$bin/python" -m pytest -n 2 --dist loadfile "$@"
