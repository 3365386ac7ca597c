#!/usr/bin/env bash
# Times ours, beside PyTorch where it says so, on this machine's CPU or GPU. Needs the extras dev and torch (--gpu: cuda
# too; --protections: no torch):
#   pip install -e '.[dev,torch]'
#   bash launch/benchmark.sh [--rounds N] [--json FILE]             the DiT beside the same network
#   bash launch/benchmark.sh --data [--clips N] [--json FILE]       the data pipeline beside a Dataset and DataLoader
#   bash launch/benchmark.sh --gpu [--tokens N,N] [--size FxHxW] [--json FILE]      attention, and stage 2 at full width
#   bash launch/benchmark.sh --prepare speed VIDEO...             `prepare` beside FFmpeg (no torch; the extra evaluation)
#   bash launch/benchmark.sh --protections [--rounds N] [--json FILE]    what the protections of a run cost
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ ${1:-} == --help ]]; then show_help && exit 0; fi
cd "$(dirname "$0")/.."
program=dit_vs_torch
case ${1:-} in
  --data) program=data_vs_torch && shift ;;
  --prepare) program=preparation && shift ;;
  --gpu) program=gpu_speed && shift ;;
  --protections) program=protections && shift ;;
esac
PYTHONPATH=. exec "${PYTHON:-python}" "tests/benchmarks/$program.py" "$@"
