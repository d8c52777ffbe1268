#!/usr/bin/env bash
# Difference target propagation (L-DRL) with VGG on ImageNet 32x32.
# Submit from the root of the repository: sbatch slurm/vgg_dtp.sh. See common.sh for nodes, GPUs, arrays and settings.
#SBATCH --job-name=vgg_dtp
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
    echo "error: $common not found; submit from the root of the repository: sbatch slurm/vgg_dtp.sh" >&2
    exit 2
fi
# shellcheck source=slurm/common.sh
source "$common"

dtp_train --algo dtp --model vgg --data imagenet32 -- "$@"
