#!/usr/bin/env bash
# The checks that take too long for every change: the tests marked slow, and the benchmarks of the ops.
# Run it in an environment that has `pip install -e ".[test]" -c constraints.txt`.
set -euo pipefail
cd "$(dirname "$0")/.."

pytest -m slow "$@"
if [ -d benchmarks ]; then
    pytest benchmarks
fi
