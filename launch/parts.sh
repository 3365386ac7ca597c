# shellcheck shell=bash disable=SC2034 # variables for other files
# What the checks and the quickstart share: parts with a budget, one run of pytest for each. Sourced, not run.

summary=()

# enter_root: PYTHON, python3 unless set, as an absolute path; then the root of the repository.
enter_root() {
  PYTHON="${PYTHON:-python3}"
  if [[ $PYTHON == */* ]]; then PYTHON="$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")"; fi
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
}

# install_extra NAME[,NAME]: the repository with these extras into the environment of PYTHON.
install_extra() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "fv_jax needs Python 3.11 or newer; $PYTHON is $("$PYTHON" --version 2>&1)" >&2
    return 1
  }
  "$PYTHON" -m pip install --quiet --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-compile -e ".[$1]" # most modules are never imported
}

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

# tests NAME BUDGET FOLDER...: one pytest run as a part of its own; a folder without tests is reported. A test that has
# not ended after 15 minutes never will: its process ends, with the stacks of its threads, and the test has failed.
# WORKERS: a third one where much is waiting for other processes. DISTRIBUTION: worksteal where files take minutes.
WORKERS=2
DISTRIBUTION=loadfile
tests() {
  local name=$1 budget=$2 folder folders=()
  shift 2
  for folder in "$@"; do
    if [[ -f $folder ]] || has_tests "$folder"; then
      folders+=("$folder")
    else
      printf '\n== %s: no tests in %s\n' "$name" "$folder"
    fi
  done
  ((${#folders[@]} == 0)) || part "$name" "$budget" "$PYTHON" -m pytest -q -n "$WORKERS" --dist "$DISTRIBUTION" \
    --durations=8 --durations-min=5 --max-worker-restart 0 \
    -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true "${folders[@]}"
}

print_summary() {
  printf '\n== all parts passed under %s\n' "$("$PYTHON" --version)"
  printf '   %s\n' "${summary[@]}"
  printf '   total %d s\n' "$SECONDS"
}
