#!/usr/bin/env bash
# Times our DiT beside the same network in plain PyTorch, on this machine's CPU. Needs the extras dev and torch:
#   pip install -e '.[dev,torch]'
#   bash launch/benchmark.sh [--rounds N] [--json FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH=. exec "${PYTHON:-python}" tests/benchmarks/dit_vs_torch.py "$@"
