#!/usr/bin/env bash
# A search for hyper-parameters, whose trials the tasks of an array divide among them.
# Submit from the root of the repository: sbatch --array=1-8 slurm/search.sh --algo sdtp --data mnist --trials 60.
# Arguments are those of dtp search. See common.sh for GPUs and settings: with several in a task
# (--gpus-per-node=4) as many trials run at once.
#SBATCH --job-name=search
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=1-00:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=SIGUSR1@90
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail

# SLURM runs a copy of this script from its spool folder, so what lies beside it is found from where it was submitted.
common=${SLURM_SUBMIT_DIR:-$PWD}/slurm/common.sh
if [[ ! -f $common ]]; then
    echo "error: $common not found; submit from the root of the repository: sbatch slurm/search.sh" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$common"

dtp_search "$@"
