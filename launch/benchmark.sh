#!/usr/bin/env bash
# Times ours on this machine's CPU, beside plain PyTorch where it says so. Needs the extras dev and torch:
#   pip install -e '.[dev,torch]'
#   bash launch/benchmark.sh [--rounds N] [--json FILE]             the DiT beside the same network
#   bash launch/benchmark.sh --data [--clips N] [--json FILE]       the data pipeline beside a Dataset and DataLoader
#   bash launch/benchmark.sh --protections [--rounds N] [--json FILE]    what the protections of a run cost (no torch)
set -euo pipefail
cd "$(dirname "$0")/.."
program=dit_vs_torch
if [[ ${1:-} == --data ]]; then program=data_vs_torch && shift; fi
if [[ ${1:-} == --protections ]]; then program=protections && shift; fi
PYTHONPATH=. exec "${PYTHON:-python}" "tests/benchmarks/$program.py" "$@"
