#!/usr/bin/env bash
# From nothing to an enhanced clip on two CPU cores, in at most 20 minutes and 6 GB:
#   bash launch/quickstart.sh [FOLDER]        (default: quickstart)
# Installs fv_jax into the environment of ${PYTHON:-python3}, trains stage 2 (configs/stage2.py:tiny) on the clips in
# the package, enhances held-out shots and writes FOLDER/result: report.html, a page to look at, report.json, and the
# videos. Run it again to resume.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or "${1:-}"

PYTHON="${PYTHON:-python3}"
if [[ $PYTHON == */* ]]; then PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")"; fi
folder="$(mkdir -p "${1:-quickstart}" && cd "${1:-quickstart}" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

say() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "fv_jax needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1)" >&2
  exit 1
}
say 'installing'
"$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --root-user-action=ignore -e '.[evaluation]'
say 'training stage 2'
"$PYTHON" -m fv_jax.train --config=configs/stage2.py:tiny --workdir="$folder/run"
say 'enhancing and measuring held-out shots'
"$PYTHON" -m fv_jax.evaluate --checkpoint="$folder/run" --output="$folder/result" --overwrite \
  --num-clips=4 --num-steps=1,4 --vgg-frames=1
say 'enhancing a small clip'
"$PYTHON" -m fv_jax.sample clip --checkpoint="$folder/run" --input="$folder/result/clips/clip 0/input.mp4" \
  --output="$folder/result/enhanced.mp4" --size=256x480 --overwrite
say "done: open $folder/result/report.html"
