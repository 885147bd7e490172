#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --time=$time
#SBATCH --output=$output
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@$notice
$directives
# Before the time limit, and when SLURM preempts the job, the processes get SIGTERM, save the same step and exit with 75;
# this script waits for them and puts the job into the queue again, where it goes on from that step.
trap ':' TERM
cd $directory || exit 1
$setup
srun --kill-on-bad-exit=0 --wait=60 $line
code=$$?
if [ "$$code" -eq 75 ] && [ "$${SLURM_RESTART_COUNT:-0}" -lt $max_restarts ]; then
  scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
