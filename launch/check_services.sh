#!/usr/bin/env bash
# What needs other programs than Python or minutes, under the Python it is called with: reports in a browser, object
# storage that fails, training and lists of prompts that are killed, preempted or stalled, in one and several processes,
# sampling over more meshes, training that diverges or takes long, videos of many kinds, and the code blocks of the guides.
#   bash launch/check_services.sh        (PYTHON=/path/to/python bash launch/check_services.sh for another one)
# Installs the extras dev, services and beam into that Python's environment, and nothing into the system: Chromium must be
# there. A part that fails stops the run; a part over its budget (seconds, on two cores) is reported and does not fail.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
help_or "${1:-}"

BUDGET_INSTALL=120
BUDGET_BROWSER=180
BUDGET_BUCKETS=450
BUDGET_KILLS=700
BUDGET_MESHES=120
BUDGET_TRAINING=150
BUDGET_BEAM=120
BUDGET_FLOW_MAP=240
BUDGET_GUIDES=150
BUDGET_VIDEOS=60

enter_root
export JAX_PLATFORMS=cpu
unset JAX_COMPILATION_CACHE_DIR

if ! command -v chromium-headless-shell >/dev/null; then
  echo 'check_services: chromium-headless-shell not found; on Debian, as root: apt-get install chromium-headless-shell' >&2
  exit 1
fi
part install "$BUDGET_INSTALL" install_extra dev,services,beam
tests browser "$BUDGET_BROWSER" tests/browser
# The longest files first; most of their time is waiting for servers and other processes.
WORKERS=3 DISTRIBUTION=worksteal tests buckets "$BUDGET_BUCKETS" tests/storage/full_{killed_runs,pod_day,process_runs}.py \
  tests/storage/full_*.py
WORKERS=3 tests kills "$BUDGET_KILLS" tests/kills
XLA_FLAGS=--xla_force_host_platform_device_count=8 WORKERS=1 tests meshes "$BUDGET_MESHES" tests/parallel/full_*.py
DISTRIBUTION=worksteal tests training "$BUDGET_TRAINING" tests/e2e/full_training.py
WORKERS=1 tests beam "$BUDGET_BEAM" tests/data/preparation/full_beam.py
tests 'flow map' "$BUDGET_FLOW_MAP" tests/e2e/full_flow_map.py
DISTRIBUTION=worksteal tests guides "$BUDGET_GUIDES" tests/docs/full_blocks.py
DISTRIBUTION=worksteal tests videos "$BUDGET_VIDEOS" tests/data/video/full_*.py
print_summary
