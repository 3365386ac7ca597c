#!/usr/bin/env bash
# Everything that must hold before a change lands, under the Python it is called with:
#   bash launch/check.sh                 (PYTHON=/path/to/python bash launch/check.sh for another one)
# Installs the dev extra into that Python's environment, then lint, the import order and the tests, in parts.
# A part that fails stops the run. A part over its budget (seconds, on two cores) is reported and does not fail.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or "${1:-}"

BUDGET_INSTALL=80
BUDGET_LINT=20
BUDGET_PARITY=70
BUDGET_UNIT=310
BUDGET_DEVICES=110
BUDGET_E2E=120
BUDGET_TPU=45

PYTHON="${PYTHON:-python3}"
if [[ $PYTHON == */* ]]; then PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")"; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PLATFORMS=cpu
unset JAX_COMPILATION_CACHE_DIR
summary=()

# part NAME BUDGET COMMAND...: runs the command, and says how long it took beside its budget.
part() {
  local name=$1 budget=$2 began=$SECONDS took status=0
  shift 2
  printf '\n== %s (budget %d s)\n' "$name" "$budget"
  "$@" || status=$?
  took=$((SECONDS - began))
  if ((status != 0)); then
    printf '== %s FAILED (exit %d) after %d s\n' "$name" "$status" "$took" >&2
    exit "$status"
  fi
  if ((took > budget)); then
    printf '== WARNING: %s took %d s, over its budget of %d s\n' "$name" "$took" "$budget" >&2
    summary+=("$(printf '%-16s %4d s  OVER its budget of %d s' "$name" "$took" "$budget")")
  else
    summary+=("$(printf '%-16s %4d s  of %d s' "$name" "$took" "$budget")")
  fi
}

# has_tests FOLDER: whether pytest has anything to find there (it exits with an error where it has not).
has_tests() { [[ -n $(find "$1" -name 'test_*.py' -print -quit 2>/dev/null) ]]; }

# tests NAME BUDGET FOLDER...: one pytest run as a part of its own; a folder without tests is reported.
# WORKERS: a third one where much is waiting for other processes.
WORKERS=2
tests() {
  local name=$1 budget=$2 folder folders=()
  shift 2
  for folder in "$@"; do
    if has_tests "$folder"; then folders+=("$folder"); else printf '\n== %s: no tests in %s\n' "$name" "$folder"; fi
  done
  ((${#folders[@]} == 0)) || part "$name" "$budget" "$PYTHON" -m pytest -q -n "$WORKERS" --dist loadfile "${folders[@]}"
}

install() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "fv_jax needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1)" >&2
    return 1
  }
  "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --root-user-action=ignore -e '.[dev]'
}

lint() { "$PYTHON" -m ruff check . && "$PYTHON" -m ruff format --check .; }

part install "$BUDGET_INSTALL" install
part lint "$BUDGET_LINT" lint
part 'import order' "$BUDGET_LINT" "$PYTHON" -m pytest -q tests/architecture
# Compiled as it is in use; all other parts compile quicker (tests/conftest.py).
JAX_DISABLE_MOST_OPTIMIZATIONS=false tests parity "$BUDGET_PARITY" tests/parity

unit_folders=(tests/test_*.py) # of the commands
for folder in tests/*/; do
  case "$folder" in
    tests/architecture/ | tests/parity/ | tests/parallel/ | tests/e2e/ | tests/benchmarks/ | tests/tpu/ | tests/__pycache__/) ;;
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

printf '\n== all parts passed under %s\n' "$("$PYTHON" --version)"
printf '   %s\n' "${summary[@]}"
printf '   total %d s\n' "$SECONDS"
