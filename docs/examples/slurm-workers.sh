#!/bin/bash
# Joins a sweep with 8 workers, one GPU each, anywhere in the cluster:
#
#   sbatch slurm-workers.sh STUDY
#
# The sweep was started with `trainer fit --config sweep.yml --storage "$STORAGE" --study STUDY --tracking-uri URI`;
# STORAGE holds the database's address, postgresql://USER:PASSWORD@HOST/NAME, and URI an MLflow server's, or none.
# A worker that reaches its time limit loses no trial: another worker resumes it.
#SBATCH --job-name=worker
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --output=%x-%A-%a.log
set -eu

trainer worker --storage "$STORAGE" --study "$1" --gpus 1
