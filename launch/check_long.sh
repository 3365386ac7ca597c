#!/usr/bin/env bash
# Tests of Python alone that take too long for check.sh, in eleven minutes on two cores, under the Python it is called with:
# training, sampling and preparing in several processes, training and sampling over more meshes, training that diverges or
# resumes, flow maps, the code blocks of the guides, videos of many kinds.
#   bash launch/check_long.sh        (PYTHON=/path/to/python bash launch/check_long.sh for another one)
# Installs the extra dev into that Python's environment. A part that fails stops the run; a part over its budget (seconds, on
# two cores) is reported and does not fail.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
help_or "${1:-}"

BUDGET_INSTALL=90
BUDGET_PROCESSES=300
BUDGET_MESHES=120
BUDGET_TRAINING=90
BUDGET_FLOW_MAP=100
BUDGET_GUIDES=40
BUDGET_VIDEOS=60

enter_root
export JAX_PLATFORMS=cpu
unset JAX_COMPILATION_CACHE_DIR

part install "$BUDGET_INSTALL" install_extra dev
tests processes "$BUDGET_PROCESSES" tests/parallel/full_{processes,preparing,evaluation}.py
XLA_FLAGS=--xla_force_host_platform_device_count=8 WORKERS=1 tests meshes "$BUDGET_MESHES" tests/parallel/full_{meshes,flow_map}.py
DISTRIBUTION=worksteal
tests training "$BUDGET_TRAINING" tests/e2e/full_training.py
DISTRIBUTION=loadfile tests 'flow map' "$BUDGET_FLOW_MAP" tests/e2e/full_flow_map.py
tests guides "$BUDGET_GUIDES" tests/docs/full_blocks.py
tests videos "$BUDGET_VIDEOS" tests/data/video/full_*.py
print_summary
