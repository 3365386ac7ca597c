#!/usr/bin/env bash
# Times ours beside plain PyTorch, on this machine's CPU. Needs the extras dev and torch:
#   pip install -e '.[dev,torch]'
#   bash launch/benchmark.sh [--rounds N] [--json FILE]             the DiT beside the same network
#   bash launch/benchmark.sh --data [--clips N] [--json FILE]       the data pipeline beside a Dataset and DataLoader
set -euo pipefail
cd "$(dirname "$0")/.."
program=dit_vs_torch
if [[ ${1:-} == --data ]]; then program=data_vs_torch && shift; fi
PYTHONPATH=. exec "${PYTHON:-python}" "tests/benchmarks/$program.py" "$@"
