#!/usr/bin/env bash
# Everything that must hold before a change lands, under the Python it is called with:
#   bash launch/check.sh                 (PYTHON=/path/to/python bash launch/check.sh for another one)
# Installs the dev extra into that Python's environment, then lint, the import order and the tests, in parts.
# A part that fails stops the run. A part over its budget (seconds, on two cores) is reported and does not fail.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=launch/parts.sh
. "$(dirname "${BASH_SOURCE[0]}")/parts.sh"
help_or "${1:-}"

BUDGET_INSTALL=110
BUDGET_LINT=20
BUDGET_PARITY=70
BUDGET_UNIT=430
BUDGET_DEVICES=130
BUDGET_E2E=90
BUDGET_TPU=45

enter_root
export JAX_PLATFORMS=cpu
unset JAX_COMPILATION_CACHE_DIR

lint() { "$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check .; }

part install "$BUDGET_INSTALL" install_extra dev
part lint "$BUDGET_LINT" lint
part 'import order' "$BUDGET_LINT" "$PYTHON" -m pytest -q tests/architecture
# Compiled as it is in use; all other parts compile quicker (tests/conftest.py).
JAX_DISABLE_MOST_OPTIMIZATIONS=false tests parity "$BUDGET_PARITY" tests/parity

unit_folders=(tests/test_*.py) # of the commands
for folder in tests/*/; do
  case "$folder" in
    tests/architecture/ | tests/parity/ | tests/parallel/ | tests/e2e/ | tests/benchmarks/ | tests/tpu/ | tests/browser/ | tests/kills/ | tests/__pycache__/) ;;
    *) unit_folders+=("${folder%/}") ;;
  esac
done
tests unit "$BUDGET_UNIT" "${unit_folders[@]}"

# The number of devices is fixed when a process first asks for one: these tests get processes of their own.
export XLA_FLAGS="--xla_force_host_platform_device_count=8 ${XLA_FLAGS:-}"
WORKERS=3 tests 'several devices' "$BUDGET_DEVICES" tests/parallel
export XLA_FLAGS="${XLA_FLAGS#--xla_force_host_platform_device_count=8 }"

WORKERS=3 tests 'end to end' "$BUDGET_E2E" tests/e2e
tests 'absent TPU' "$BUDGET_TPU" tests/tpu # skipped without libtpu

print_summary
