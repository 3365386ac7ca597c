#!/usr/bin/env bash
# Stage 2 through its three phases, each from the one before; the same command again resumes:
#   bash launch/train_stage2.sh FOLDER [--tiny] [--config.FIELD=VALUE ...]
# FOLDER may be in a bucket, gs://BUCKET/NAME. FOLDER/phase1 ... phase3 are the runs (configs/stage2.py:phase1 ...). Flags are given to all three phases. --tiny takes
# minutes a phase on two CPU cores: the clips and the small VAE in the package, and nothing to prepare.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or "${1:-}"

PYTHON="${PYTHON:-python3}"
folder="${1:?usage: bash launch/train_stage2.sh FOLDER [--tiny] [--config.FIELD=VALUE ...]}"
shift
suffix=''
if [[ ${1:-} == --tiny ]]; then suffix=',tiny=true' && shift; fi
[[ $folder == *://* ]] || folder="$(mkdir -p "$folder" && cd "$folder" && pwd)"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

start=()
for phase in phase1 phase2 phase3; do
  printf '\n== %s (%d s)\n' "$phase" "$SECONDS"
  "$PYTHON" -m fv_jax.train --config="configs/stage2.py:$phase$suffix" --workdir="$folder/$phase" "${start[@]}" "$@"
  start=("--config.init_from=$folder/$phase")
done
