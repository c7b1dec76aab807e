#!/usr/bin/env bash
# Formatting, lint, types, import contracts, then all tests, with the tools of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/pyright"
"$bin/lint-imports" --no-logo
"$bin/python" -m pytest "$@"
