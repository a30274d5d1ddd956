#!/bin/bash
# A suite as a SLURM job array, without any scheduler of ours: sbatch job_array.sh suite.toml, then
#   cp -r results/part-*/. results/whole/ && gradest status results/whole
#SBATCH --job-name=gradest
#SBATCH --array=1-64
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=01:00:00
#SBATCH --signal=B:TERM@60
set -eu
suite=${1:?a TOML file of suites}
part=${SLURM_ARRAY_TASK_ID:?to be run by sbatch} parts=${SLURM_ARRAY_TASK_COUNT:-64}
export OMP_NUM_THREADS=1 GRADEST_CACHE=${GRADEST_CACHE:-/shared/gradest-cache}
# A minute before its end the job is told, and what is in flight is cancelled; submitted again, it goes on.
exec gradest run "$suite" --shard "$part/$parts" -j "${SLURM_CPUS_PER_TASK:-8}" --out "results/part-$part"
