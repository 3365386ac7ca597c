#!/usr/bin/env bash
# What needs other programs than Python, or to be killed, in 16 minutes on two cores, under the Python it is called
# with: reports and the page of the job server in a browser, object storage that fails, training, lists of prompts,
# preparation and a job server that are killed, preempted or stalled, and Beam.
#   bash launch/check_services.sh        (PYTHON=/path/to/python bash launch/check_services.sh for another one)
# Installs the extras dev, services and beam into that Python's environment, and nothing into the system: Chromium must be
# there. A part that fails stops the run; a part over its budget (seconds, on two cores) is reported and does not fail.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
help_or "${1:-}"

BUDGET_INSTALL=60
BUDGET_BROWSER=90
BUDGET_BUCKETS=540
BUDGET_KILLS=250
BUDGET_SERVING=30
BUDGET_BEAM=20

enter_root
export JAX_PLATFORMS=cpu
unset JAX_COMPILATION_CACHE_DIR

if ! command -v chromium-headless-shell >/dev/null; then
  echo 'check_services: chromium-headless-shell not found; on Debian, as root: apt-get install chromium-headless-shell' >&2
  exit 1
fi
part install "$BUDGET_INSTALL" install_extra dev,services,beam
DISTRIBUTION=worksteal
tests browser "$BUDGET_BROWSER" tests/browser
# The longest files first; most of their time is waiting for servers and other processes.
WORKERS=3
tests buckets "$BUDGET_BUCKETS" tests/storage/full_{killed_runs,training_faults,pod_day,killed_lists,process_runs}.py \
  tests/storage/full_*.py
tests kills "$BUDGET_KILLS" tests/kills
WORKERS=2 tests serving "$BUDGET_SERVING" tests/serving/full_killed_server.py
WORKERS=1 tests beam "$BUDGET_BEAM" tests/data/preparation/full_beam.py
print_summary
