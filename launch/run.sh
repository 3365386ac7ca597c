#!/usr/bin/env bash
# Runs a command with the flags of a chip, and runs it again when it says that it was preempted. All launch scripts put it
# around the command, on every host:
#   bash launch/run.sh --chip=CHIP [--slices=N] [--dry-run] -- COMMAND...
# The command requests that by exit code 75: its state is saved, and it resumes. Any other code is this script's own.
# SIGTERM and SIGINT reach the command as SIGTERM; when it then ends with 75 the machine is about to go, so 75 is handed on to
# whoever can start it elsewhere. A command that ends with 75 three times in a row within five minutes each gets nowhere: 1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"

readonly QUICK=300 QUICK_ENDS=3 # seconds; how many ends in a row

chip='' slices=${MEGASCALE_NUM_SLICES:-1} dry_run=''
read_options 'chip slices' '' "$@"
need chip 'v4, v5e, v5p, v6e, v7x or gpu'
need_count slices
need_command
if [[ -n $dry_run ]]; then
  bash "$here/env.sh" "$chip" "$slices"
  printf '# again while it ends with %d\n' "$PREEMPTED"
  act "${command[@]}"
  exit
fi
. "$here/env.sh" "$chip" "$slices" || exit

say() { printf '\n== run: %s (%d s)\n' "$1" "$SECONDS" >&2; }

child='' stopping='' interrupted=''
pass_on() {
  stopping=yes interrupted=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap pass_on TERM INT

# run_once: runs the command, and sets `status` to how it ended.
run_once() {
  local again
  "${command[@]}" &
  child=$!
  status=0
  wait "$child" || status=$?
  # A signal ends `wait` early, with a code above 128; the command itself is still to be waited for.
  while [[ -n $interrupted ]] && ((status > 128)); do
    interrupted='' again=0
    wait "$child" || again=$?
    ((again == 127)) || status=$again
  done
  child=''
}

quick=0
while :; do
  began=$SECONDS
  run_once
  ((status == PREEMPTED)) || exit "$status"
  if [[ -n $stopping ]]; then
    say 'the command saved its state; this machine is to be given up'
    exit "$PREEMPTED"
  fi
  if ((SECONDS - began < QUICK)); then quick=$((quick + 1)); else quick=0; fi
  if ((quick == QUICK_ENDS)); then
    printf 'run: the command ended with %d %d times in a row, each within %d s; not running it again\n' \
      "$PREEMPTED" "$QUICK_ENDS" "$QUICK" >&2
    exit 1
  fi
  say 'the command was preempted; running it again'
done
