#!/usr/bin/env bash
# Prepares videos on machines of Google Cloud Dataflow, which makes the shards; planning and publishing are done here:
#   bash launch/dataflow.sh --name=NAME --project=P --region=R --image=IMAGE --temp=gs://BUCKET/tmp [OPTIONS] -- \
#       python -m fv_jax.prepare --input gs://BUCKET/videos --output gs://BUCKET/clips --config=prepare
#   --image     with Beam's worker in it (launch/README.md), where Dataflow can read it
#   --temp      a folder of a bucket for Dataflow's own files
#   --workers=N the most machines (100)
#   --machine=TYPE  of each (n2-standard-4)
#   --disk-gb=N of each, for copies of videos (100)
#   --dry-run   prints the command and does nothing
# Needs `pip install 'fv_jax[beam,gcs]' 'apache-beam[gcp]'` here. When the command is given again it continues. Not run on
# Dataflow yet: Beam's DirectRunner is tested.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"

name='' project='' region='' image='' temp='' dry_run=''
workers=100 machine=n2-standard-4 disk_gb=100
read_options 'name project region image temp workers machine disk-gb' '' "$@"
need_name
need project 'the Google Cloud project'
need region 'where the machines are, europe-west4'
need image 'an image with fv_jax and the worker of Beam'
need temp 'a folder of a bucket, gs://BUCKET/tmp'
[[ $temp == gs://?* ]] || fail "--temp=$temp: must be gs://BUCKET/FOLDER"
need_count workers && need_count disk-gb
need_command
for word in "${command[@]}"; do
  [[ $word != --runner* && $word != -- ]] || fail "$word: this script chooses the runner and its options"
done

# One thread a core: a shard holds the frames of a clip in memory.
act "${command[@]}" --runner=DataflowRunner -- --job_name="$name" --project="$project" --region="$region" \
  --sdk_container_image="$image" --sdk_location=container --temp_location="$temp" --max_num_workers="$workers" \
  --machine_type="$machine" --disk_size_gb="$disk_gb" --number_of_worker_harness_threads=1 --experiments=use_runner_v2
