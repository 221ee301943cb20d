#!/usr/bin/env bash
# The checks that take too long for every change: the tests marked slow, the kernels under sanitizers and as ARM code
# under an emulator, and the benchmarks of the ops at small sizes, for their comparisons and not for their figures.
# Run it in an environment that has `pip install -e ".[test]" -c constraints.txt`.
set -euo pipefail
cd "$(dirname "$0")/.."

pytest -m slow "$@"
scripts/sanitize.sh
status=0
scripts/check_arm.sh || status=$?
case $status in
    0) ;;
    77) echo "skipped: the check on ARM" ;;
    *) exit "$status" ;;
esac
if [ -d benchmarks ]; then
    pytest benchmarks --small --benchmark-disable
fi
