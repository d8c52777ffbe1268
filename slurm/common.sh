# shellcheck shell=bash
#
# What the scripts in this folder share. They are submitted from the root of the repository:
#
#     sbatch slurm/vgg_dtp.sh                                # one GPU
#     sbatch slurm/vgg_dtp.sh --seed 1 --logger wandb        # arguments of main.py come after the script
#     sbatch --array=1-5 slurm/vgg_dtp.sh                    # five runs, with seeds 1 to 5
#     sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/vgg_dtp.sh
#
# One task per GPU: several GPUs need --ntasks-per-node as well as --gpus-per-node. Any other option of sbatch
# (--time, --partition, --account, ...) goes before the script and beats what the script asks for.
#
# Environment variables, all optional:
#     DTP_DATA_DIR   folder of the dataset
#     DTP_RUN_DIR    folder of the run, one per array task by appending -TASK;
#                    default runs/NAME-JOB, or runs/NAME-JOB_TASK in an array
#     DTP_VENV       virtual environment to activate
#     DTP_ARGS       more arguments of main.py, separated by spaces
#
# A job that reaches its time limit goes on by itself: 90 seconds before, SLURM sends SIGUSR1 to main.py, which writes a
# checkpoint and exits with status 75; the job is then queued again, under the same id and so with the same run folder,
# and --resume auto continues there. A job that is preempted, or whose machine fails, is queued again by SLURM and
# continues from its last checkpoint. scancel ends it for good.

dtp_fail() {
    echo "error: $*" >&2
    exit 2
}

# dtp_train EXPERIMENT... -- ARGUMENTS... : train under srun. Both are arguments of main.py; where one is given twice, the
# later counts, and DTP_ARGS and the user's ARGUMENTS are later than the rest. Returns srun's status; 0 once requeued.
dtp_train() {
    local -a experiment=()
    while (($#)) && [[ $1 != -- ]]; do
        experiment+=("$1")
        shift
    done
    shift

    [[ -n ${SLURM_JOB_ID:-} ]] || dtp_fail "not a SLURM job; submit it: sbatch slurm/${SLURM_JOB_NAME:-vgg_dtp}.sh"
    cd "$SLURM_SUBMIT_DIR" || dtp_fail "$SLURM_SUBMIT_DIR cannot be entered on $(hostname)"
    if [[ -n ${DTP_VENV:-} ]]; then
        [[ -f $DTP_VENV/bin/activate ]] || dtp_fail "DTP_VENV=$DTP_VENV is no virtual environment: no bin/activate in it"
        # shellcheck source=/dev/null
        source "$DTP_VENV/bin/activate"
    fi

    local job=$SLURM_JOB_ID
    local run_dir=${DTP_RUN_DIR:-}
    local -a seed=()
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
        # Two tasks must not write to one folder.
        run_dir=${run_dir:+$run_dir-$SLURM_ARRAY_TASK_ID}
        seed=(--seed "$SLURM_ARRAY_TASK_ID")
    fi
    run_dir=${run_dir:-runs/${SLURM_JOB_NAME:-dtp}-$job}

    local -a extra=()
    local words=${DTP_ARGS:-}
    read -r -a extra <<<"${words//$'\n'/ }"

    # ${array[@]+...}: bash before 4.4 takes an empty array for an unset variable.
    local -a command=(
        python main.py
        "${experiment[@]}"
        --num-nodes "${SLURM_NNODES:-1}"
        --devices "${SLURM_NTASKS_PER_NODE:-1}"
        --run-dir "$run_dir"
        --resume auto
        ${DTP_DATA_DIR:+--data-dir "$DTP_DATA_DIR"}
        ${seed[@]+"${seed[@]}"}
        ${extra[@]+"${extra[@]}"}
        "$@"
    )

    # Since SLURM 22.05 srun no longer takes this over from sbatch, and would give each task one core.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    fi

    echo "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), ${SLURM_JOB_NODELIST:-}: ${command[*]}"
    # If one task fails, the others wait for it in vain and are ended after five minutes; not at once, because the tasks
    # of a run that stops with a checkpoint end one after another, and killing one would hide status 75.
    local status=0
    srun --kill-on-bad-exit=0 --wait=300 "${command[@]}" || status=$?
    if ((status != 75)); then
        return "$status"
    fi
    # Not reached after scancel: that ends this shell together with main.py.
    if ! scontrol requeue "$job"; then
        echo "error: job $job stopped with a checkpoint but cannot be queued again; submit it with" \
            "DTP_RUN_DIR=$run_dir to go on" >&2
        return "$status"
    fi
    echo "job $job stopped with a checkpoint and is queued again"
}
