#!/usr/bin/env bash
# Starts a run on TPUs of a GKE cluster as a JobSet, in the cluster that kubectl points at:
#   bash launch/jobset.sh --name=NAME --type=v5p-32 --image=IMAGE [OPTIONS] -- \
#       python -m fv_jax.train --config=stage2 --workdir=gs://BUCKET/RUN
#   --type      the slice, by Google's name (launch/slices.sh); a node pool of that topology must be there
#   --image     what launch/Dockerfile makes, pushed to where the cluster can read it
#   --service-account=NAME  of the pods, in Kubernetes; with Workload Identity it is what may use the bucket
#   --claim     a PersistentVolumeClaim that every host can write, mounted at /data; for a --workdir that is no bucket
#   --slices=N  several slices, joined over the data centre network (1)
#   --spot      on spot nodes
#   --restarts=N  how often the run may restart (100)
#   --grace=S   seconds to save in when a node is taken (600; a spot node gives less)
#   --namespace=NAME
#   --dry-run   prints the command and the manifest, and does nothing
# One pod a host, each with the same command under launch/run.sh. When a pod ends with exit code 75, or its node is taken from
# it, all restart; on any other code the run has failed. Another try under the same name needs
# `kubectl delete jobset NAME` first.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"
. "$here/slices.sh"

name='' type='' image='' claim='' namespace='' service_account='' spot='' dry_run=''
slices=1 restarts=100 grace=600
read_options 'name type image claim slices restarts grace namespace service-account' 'spot' "$@"
need_name
need type 'the slice of every job, v5p-32'
need image 'what launch/Dockerfile makes, where the cluster can read it'
need_count slices && need_count grace && need_count restarts 0
need_command
[[ -n $claim || "${command[*]}" == *gs://* ]] ||
  fail '--claim is missing: a restart would begin from nothing; give --workdir=gs://BUCKET/RUN or a volume claim'
read_slice "$type"
case $generation in
  v4) accelerator=tpu-v4-podslice ;;
  v5e) accelerator=tpu-v5-lite-podslice ;;
  v5p) accelerator=tpu-v5p-slice ;;
  v6e) accelerator=tpu-v6e-slice ;;
  v7x) accelerator=tpu7x ;;
esac

# yaml_string WORD: the word in YAML's (JSON's) double quotes.
yaml_string() {
  local word=${1//\\/\\\\}
  word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
  printf '"%s"' "$word"
}

# The command's words, one a line of a YAML list.
yaml_command() {
  local word
  for word in bash launch/run.sh "--chip=$generation" "--slices=$slices" -- "${command[@]}"; do
    printf '                    - %s\n' "$(yaml_string "${word//\$(/\$\$(}")" # Kubernetes would fill in $(NAME)
  done
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # one slice, one node pool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          completionMode: Indexed
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: Count  # the node was taken: restart
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
              - action: FailJob  # any other end than "preempted" is a failure
                onPodConditions: []
                onExitCodes:
                  containerName: fv-jax
                  operator: NotIn
                  values: [$PREEMPTED]
          template:
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: $grace${service_account:+
              serviceAccountName: $service_account}
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: "$topology"${spot:+
                cloud.google.com/gke-spot: \"true\"}
              containers:
                - name: fv-jax
                  image: $(yaml_string "$image")
                  command:
$(yaml_command)
                  securityContext:
                    privileged: true  # for the chips and the locked memory that they need
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
YAML
  [[ -z $claim ]] || cat <<YAML
                  volumeMounts:
                    - name: data
                      mountPath: /data
              volumes:
                - name: data
                  persistentVolumeClaim:
                    claimName: $(yaml_string "$claim")
YAML
}

act_on "$(manifest)" kubectl ${namespace:+--namespace="$namespace"} create --filename=-
