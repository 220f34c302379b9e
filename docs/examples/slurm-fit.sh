#!/bin/bash
# Trains one model on 2 machines with 4 GPUs each:
#
#   sbatch slurm-fit.sh JOB_FILE RUN_DIRECTORY
#
# The same command again goes on with a run that was stopped, and so does SLURM when it requeues the job. Job
# file, data and the run's directory lie on a disk that all machines see. A run that limits.timeout_minutes of the job
# file has ended is finished; let it be shorter than --time by the preparation, an epoch, packaging and the report.
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

# A task for each GPU. When one fails, the others end with it. srun takes no cores from sbatch by itself.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" trainer fit "$@"
