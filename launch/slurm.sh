#!/usr/bin/env bash
# Starts a run on GPUs of a Slurm cluster, from a clone and an environment on disks that its nodes share:
#   bash launch/slurm.sh --name=NAME --nodes=2 --gpus=8 --time=2-00:00:00 [OPTIONS] -- python -m fv_jax.train ...
#   --nodes, --gpus   how many nodes, and how many GPUs of each
#   --time      the time limit, in one of Slurm's forms; when it is near the run saves and queues again
#   --cpus=N    CPU cores of each GPU, for the data loader (8)
#   --partition=NAME, --account=NAME
#   --grace=S   seconds to save in before the time limit (600)
#   --dry-run   prints the command and the batch script, and does nothing
# One process a GPU, each with the same command under launch/run.sh. The job is queued again when the command ends with exit
# code 75, and on no other code; after `scancel` it is not. The output of all tries is in NAME-JOB.log.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/common.sh"

name='' nodes='' gpus='' time='' partition='' account='' dry_run=''
cpus=8 grace=600
read_options 'name nodes gpus time cpus partition account grace' '' "$@"
need_name
need nodes 'how many nodes'
need gpus 'how many GPUs of each node'
need time 'the time limit, 2-00:00:00'
for option in nodes gpus cpus grace; do need_count "$option"; done
[[ $time =~ ^([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}$ ]] || fail "--time=$time: must be as 30, 4:00:00, 2-0 or 2-00:00:00"
need_command

# JAX takes one process a GPU under Slurm, each of which must see all GPUs of its node: no --gpus-per-task.
# The cores of a task are repeated for srun, which since Slurm 22.05 does not take them from the batch job.
# A batch shell with a handler outlives a SIGTERM that is sent to the whole job, and hears how the command ended. A job that
# was cancelled is no longer RUNNING by then.
batch() {
  cat <<BATCH
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --signal=TERM@$grace${partition:+
#SBATCH --partition=$partition}${account:+
#SBATCH --account=$account}
trap : TERM
cd $(quoted "${here%/*}")
status=0
srun --cpus-per-task=$cpus $(quoted bash launch/run.sh --chip=gpu -- "${command[@]}") || status=\$?
state=\$(squeue --noheader --jobs="\$SLURM_JOB_ID" --format=%T)
if [[ \$status == $PREEMPTED && \$state == RUNNING ]]; then scontrol requeue "\$SLURM_JOB_ID"; fi
exit "\$status"
BATCH
}

act_on "$(batch)" sbatch
