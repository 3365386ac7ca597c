#!/usr/bin/env bash
# Starts a run on TPUs of a GKE cluster that xpk made:
#   bash launch/xpk.sh --name=NAME --type=v5p-32 --image=IMAGE --cluster=C --zone=Z --project=P [OPTIONS] -- python -m ...
#   --type      the slice, by Google's name (launch/slices.sh)
#   --image     what launch/Dockerfile makes, pushed to where the cluster can read it
#   --storage=NAME  a volume attached by `xpk storage attach`, for a --workdir that is no bucket
#   --slices=N  several slices, joined over the data centre network (1)
#   --restarts=N  how often the run may restart (100)
#   --grace=S   seconds to save in when a node is taken (600; a spot node gives less)
#   --dry-run   prints the command and does nothing
# One pod a host, each with the same command under launch/run.sh. When a pod ends with exit code 75 all restart; xpk does so
# too for its own 42 and for 127 to 255 (killed by a signal), which cannot be switched off. Written for xpk 1.16.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/slices.sh"

name='' type='' image='' cluster='' zone='' project='' storage='' dry_run=''
slices=1 restarts=100 grace=600
read_options 'name type image cluster zone project storage slices restarts grace' '' "$@"
need_name
need type 'the slice of every job, v5p-32'
need image 'what launch/Dockerfile makes, where the cluster can read it'
need cluster 'a cluster that xpk made'
need zone 'the zone of the cluster, us-east5-a'
need project 'the Google Cloud project of the cluster'
need_count slices && need_count grace && need_count restarts 0
need_command
read_slice "$type"

# `exec`, so that xpk's SIGTERM reaches run.sh and not a shell around it. The topology, because xpk's sizes are not
# always Google's.
act xpk workload create --workload="$name" --cluster="$cluster" --zone="$zone" --project="$project" \
  --tpu-type="$family-$topology" --num-slices="$slices" --docker-image="$image" ${storage:+--storage="$storage"} \
  --max-restarts="$restarts" --restart-on-exit-codes="$PREEMPTED" --termination-grace-period-seconds="$grace" \
  --command="exec $(quoted bash launch/run.sh --chip="$generation" --slices="$slices" -- "${command[@]}")"
