#!/bin/bash
# Trains one model on 2 machines with 4 GPUs each:
#
#   sbatch slurm-fit.sh JOB_FILE RUN_DIRECTORY
#
# The same command resumes a run that was stopped, and so does SLURM when it requeues the job. Put the job file,
# the data and the run's directory on a disk that all machines see. A run that limits.timeout_minutes of the job
# file stopped counts as finished; make it shorter than --time by the preparation, an epoch, packaging and the report.
#SBATCH --job-name=fit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -eu
job=$1 run=$2

if [ -e "$run/result.json" ]; then
    echo "$run has finished"
    exit 0
elif [ -e "$run/job.yaml" ]; then
    set -- --resume "$run"
else
    set -- --config "$job" --output "$run"
fi

# One task per GPU. If one fails, the others end, too. srun does not take the number of cores from sbatch.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" trainer fit "$@"
