#!/usr/bin/env bash
# A run on a TPU VM, of one host or of many, or on queued resources:
#   bash launch/tpu_vm.sh create --name=NAME --type=v6e-8 --zone=Z --project=P [--queued] [--slices=N] [--spot]
#   bash launch/tpu_vm.sh run    --name=NAME --type=v6e-8 --zone=Z --project=P [...] [--nfs=HOST:/SHARE] -- python -m ...
#   bash launch/tpu_vm.sh logs | stop | delete  --name=NAME --zone=Z --project=P [--queued]
# create  makes the machines; with --queued asks for them and waits until they are there
# run     copies this folder to every host, installs it there, and starts the command on all of them under launch/run.sh; it
#         continues when you log out. The same again, after `stop`, takes the new code and resumes the run
# logs    follows the output of the first host;  stop  lets the command save and end;  delete  gives the machines back
#   --type      the slice, by Google's name (launch/slices.sh); v7x is to be had on GKE only
#   --queued    queued resources; --slices=N several slices, which only they can give
#   --spot      machines that Google may take back. They are not recreated automatically: delete, create and run again
#   --nfs       a share (Filestore) to mount at /data on every host, for a --workdir that is no bucket
#   --dry-run   prints the commands and does nothing
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/slices.sh"

name='' type='' zone='' project='' nfs='' queued='' spot='' dry_run='' slices=1
action=${1:-}
case $action in
  create | run | logs | stop | delete) shift ;;
  --help) show_help && exit ;;
  *) fail "${action:-the action}: must be create, run, logs, stop or delete; see --help" ;;
esac
read_options 'name type zone project nfs slices' 'queued spot' "$@"
need_name
need zone 'the zone of the machines, us-east5-b'
need project 'the Google Cloud project that pays'
need_count slices
[[ -n $queued ]] || ((slices == 1)) || fail "--slices=$slices: only queued resources can give several; add --queued"

place=(--zone="$zone" --project="$project")
kind=tpu-vm everywhere=(--worker=all)
if [[ -n $queued ]]; then kind=queued-resources everywhere=(--node=all --worker=all); fi

# on_hosts COMMAND WHERE...: a shell command on hosts.
on_hosts() { act gcloud compute tpus "$kind" ssh "$name" "${place[@]}" "${@:2}" --command="$1"; }

need_slice() {
  need type 'the slice, v6e-8'
  read_slice "$type"
  [[ $generation != v7x ]] || fail "--type=$type: v7x is to be had on GKE only: launch/jobset.sh or launch/xpk.sh"
  # Asked for by size, whose topology Google chooses.
  local asked=$topology
  read_slice "$generation-$size"
  [[ $topology == "$asked" ]] || fail "--type=$type: gcloud takes sizes; $generation-$size is $topology"
  case $generation in
    v4) runtime=tpu-ubuntu2204-base ;;
    v5e) runtime=v2-alpha-tpuv5-lite ;;
    v5p) runtime=v2-alpha-tpuv5 ;;
    v6e) runtime=v2-alpha-tpuv6e ;;
  esac
}

create() {
  need_slice
  local accelerator=--accelerator-type=$family-$size nodes=(--node-id="$name")
  if [[ -z $queued ]]; then
    act gcloud compute tpus tpu-vm create "$name" "${place[@]}" "$accelerator" --version="$runtime" ${spot:+--spot}
    return
  fi
  if ((slices > 1)); then nodes=(--node-count="$slices" --node-prefix="$name"); fi
  act gcloud compute tpus queued-resources create "$name" "${place[@]}" "${nodes[@]}" "$accelerator" \
    --runtime-version="$runtime" ${spot:+--spot}
  wait_until_active
}

wait_until_active() {
  local ask=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)') state
  if [[ -n $dry_run ]]; then
    echo '# every 30 seconds, until it says ACTIVE:'
    act "${ask[@]}"
    return
  fi
  while :; do
    state=$(act "${ask[@]}")
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) fail "$name: the request is $state; ${ask[*]:0:6} says why" ;;
      *) sleep 30 ;;
    esac
  done
}

# A host keeps in its home: fv_jax/ (the code), env/ (Python), fv_jax.log, fv_jax.pid, fv_jax.lock.
LOCK='exec 9>fv_jax.lock; flock --nonblock 9 || { echo "a run is going on here; launch/tpu_vm.sh stop ends it" >&2; exit 1; }'

# The commands that make a host ready. The images have Python 3.10; the last line shortens every start on v5e and later.
setup() {
  local share=':'
  if [[ -n $nfs ]]; then
    share="mountpoint -q /data || sudo sh -c 'apt-get -qq install -y nfs-common && mkdir -p /data && mount -t nfs $nfs /data'"
  fi
  cat <<SETUP
set -e; $LOCK
rm -rf fv_jax; mkdir fv_jax; tar -xzf fv_jax.tar.gz -C fv_jax
python3 -m pip install --quiet --user uv
test -d env || python3 -m uv venv --quiet --python 3.12 env
python3 -m uv pip install --quiet --python env/bin/python -e "./fv_jax[tpu,gcs]"
$share
sudo sh -c "echo always > /sys/kernel/mm/transparent_hugepage/enabled"
SETUP
}

run() {
  need_slice
  need_command
  [[ -z $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9_./-]*$ ]] || fail "--nfs=$nfs: must be HOST:/SHARE"
  local archive=${TMPDIR:-/tmp}/fv_jax-$name.tar.gz words
  words=$(quoted bash launch/run.sh --chip="$generation" --slices="$slices" -- "${command[@]}")
  # shellcheck disable=SC2064 # the name as it is now
  [[ -n $dry_run ]] || trap "rm -f $(quoted "$archive")" EXIT # also when a step fails
  act tar -C "${here%/*}" --exclude=__pycache__ -czf "$archive" LICENSE README.md configs fv_jax launch setup.py
  act gcloud compute tpus "$kind" scp "$archive" "$name:fv_jax.tar.gz" "${place[@]}" "${everywhere[@]}"
  act rm -f "$archive"
  on_hosts "$(setup)" "${everywhere[@]}"
  on_hosts "$LOCK
export PATH=\"\$HOME/env/bin:\$PATH\"; cd fv_jax
nohup setsid $words >>\"\$HOME/fv_jax.log\" 2>&1 </dev/null &
echo \$! >\"\$HOME/fv_jax.pid\"" "${everywhere[@]}"
}

logs() { on_hosts 'tail -n 100 -F fv_jax.log' "${everywhere[@]/%=all/=0}"; }

# shellcheck disable=SC2016 # for the hosts' shells
stop() { on_hosts 'kill "$(cat fv_jax.pid)"' "${everywhere[@]}"; }

delete() { act gcloud compute tpus "$kind" delete "$name" "${place[@]}" --quiet ${queued:+--force}; }

"$action"
