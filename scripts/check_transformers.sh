#!/usr/bin/env bash
# moe_kernels.patch with versions of transformers that do not take the name of our experts. Each is installed with what
# it needs, torch apart, into a folder under build/. Needs pip and a network; PYTHON names the interpreter with torch.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
for version in "${@:-4.57.6 5.0.0 5.3.0 5.5.0}"; do
    for one in $version; do
        folder=build/transformers-$one
        [ -d "$folder/transformers" ] || "$python" -m pip install --quiet --target "$folder" "transformers==$one"
        PYTHONPATH=$folder:.:${PYTHONPATH:-} "$python" tests/models/old_versions.py | grep "^transformers "
    done
done
