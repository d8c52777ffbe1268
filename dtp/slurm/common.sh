# shellcheck shell=bash
#
# What the scripts in this folder share. They are submitted from the root of the repository, or
# anywhere by dtp slurm NAME --submit, with or without a checkout:
#
#     sbatch slurm/vgg_dtp.sh                                # one GPU
#     sbatch slurm/vgg_dtp.sh --seed 1 --logger wandb        # arguments of dtp train come after the script
#     sbatch --array=1-5 slurm/vgg_dtp.sh                    # five runs, with seeds 1 to 5
#     sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 slurm/vgg_dtp.sh
#     sbatch --gpus-per-node=0 slurm/vgg_dtp.sh --model mlp --data digits       # no GPU
#     sbatch --array=1-8 slurm/search.sh --algo sdtp --data mnist               # eight that share one search
#     sbatch --array=1-8 slurm/sweep.sh ghawade-depth                           # eight that share the runs of a sweep
#
# One task per GPU: several GPUs need --ntasks-per-node as well as --gpus-per-node. Any other option of sbatch
# (--time, --partition, --account, ...) goes before the script and beats what the script asks for. Arguments of dtp
# train beat the script's too, --algo, --model and --data included. --batch-size counts the images over all GPUs.
#
# Environment variables, all optional:
#     DTP_DATA_DIR   folder of the dataset
#     DTP_RUN_DIR    folder of the run, one per array task by appending -TASK;
#                    default runs/NAME-JOB, or runs/NAME-JOB_TASK in an array;
#                    of a search or sweep its folder, which the tasks of an array share; default runs/NAME-JOB
#     DTP_VENV       virtual environment to activate
#     DTP_ARGS       more arguments of dtp train, separated by spaces
#
# What a run prints goes to slurm-JOB.out in its folder, all starts of the job in one file. SLURM's own file,
# slurm-NAME-JOB.out where the job was submitted, tells in a line or two of each start how it went, and holds everything
# of a run that never began, for a wrong argument, say.
#
# A job that reaches its time limit goes on by itself: 90 seconds before, SLURM sends SIGUSR1 to the run, which writes a
# checkpoint and exits with status 75; the job is then queued again, under the same id and so with the same run folder,
# and --resume auto continues there, in the same W&B run. A job that is preempted does the same on SIGTERM, if its
# partition grants it the time of a batch (GraceTime); one whose machine fails is queued again by SLURM and continues
# from its last checkpoint. scancel ends it for good, but not the run: sbatch again with DTP_RUN_DIR=FOLDER goes on.

dtp_fail() {
    echo "error: $*" >&2
    exit 2
}

# Status 0 if SLURM holds this job for a running one: nobody has cancelled it, preempted it or queued it again.
dtp_still_running() {
    [[ $(scontrol show job "$SLURM_JOB_ID" 2>/dev/null) == *JobState=RUNNING* ]]
}

# Into the folder where the job was submitted, with its virtual environment. Sets the caller's job and extra.
dtp_enter() {
    [[ -n ${SLURM_JOB_ID:-} ]] || dtp_fail "not a SLURM job; submit it: sbatch slurm/${SLURM_JOB_NAME:-vgg_dtp}.sh"
    cd "$SLURM_SUBMIT_DIR" || dtp_fail "$SLURM_SUBMIT_DIR cannot be entered on $(hostname)"
    if [[ -n ${DTP_VENV:-} ]]; then
        [[ -f $DTP_VENV/bin/activate ]] ||
            dtp_fail "DTP_VENV=$DTP_VENV is no virtual environment: no bin/activate in it"
        # shellcheck source=/dev/null
        source "$DTP_VENV/bin/activate"
    fi
    command -v python >/dev/null || dtp_fail "no python on $(hostname); set DTP_VENV to a virtual environment"

    job=$SLURM_JOB_ID
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
    fi
    local words=${DTP_ARGS:-}
    read -r -a extra <<<"${words//$'\n'/ }"
}

# dtp_train EXPERIMENT... -- ARGUMENTS... : train under srun. Both are arguments of dtp train; of one given twice the
# later counts, and DTP_ARGS and the user's ARGUMENTS are later than the rest. Returns srun's status; 0 once requeued.
dtp_train() {
    local -a experiment=()
    while (($#)) && [[ $1 != -- ]]; do
        experiment+=("$1")
        shift
    done
    shift

    local job
    local -a seed=() extra=()
    dtp_enter
    local run_dir=${DTP_RUN_DIR:-}
    if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
        # Two tasks must not write to one folder.
        run_dir=${run_dir:+$run_dir-$SLURM_ARRAY_TASK_ID}
        seed=(--seed "$SLURM_ARRAY_TASK_ID")
    fi
    run_dir=${run_dir:-runs/${SLURM_JOB_NAME:-dtp}-$job}

    # ${array[@]+...}: bash before 4.4 takes an empty array for an unset variable.
    local -a command=(
        python -m dtp train
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
    dtp_supervise run-dir config.yaml
}

# dtp_search ARGUMENTS... : search for hyper-parameters under srun. ARGUMENTS are those of dtp search. The
# tasks of an array share the trials of one study. Returns as dtp_train does.
dtp_search() {
    local job
    local -a extra=()
    dtp_enter
    local run_dir=${DTP_RUN_DIR:-runs/${SLURM_JOB_NAME:-search}-${SLURM_ARRAY_JOB_ID:-$job}}
    local -a command=(
        python -m dtp search
        --study "$run_dir"
        ${DTP_DATA_DIR:+--data-dir "$DTP_DATA_DIR"}
        ${extra[@]+"${extra[@]}"}
        "$@"
    )
    dtp_supervise study study.json
}

# dtp_sweep NAME ARGUMENTS... : run a sweep under srun, as dtp sweep does. The tasks of an array share its runs.
# Returns as dtp_train does.
dtp_sweep() {
    local name=${1:-} job
    [[ -n $name && $name != -* ]] || dtp_fail "which sweep? sbatch slurm/sweep.sh NAME [ARGUMENTS]"
    shift
    local -a extra=()
    dtp_enter
    local run_dir=${DTP_RUN_DIR:-runs/${SLURM_JOB_NAME:-sweep}-${SLURM_ARRAY_JOB_ID:-$job}}
    local -a command=(
        python -m dtp sweep "$name"
        --output "$run_dir"
        ${DTP_DATA_DIR:+--data-dir "$DTP_DATA_DIR"}
        ${extra[@]+"${extra[@]}"}
        "$@"
    )
    dtp_supervise output sweep.yaml
}

# dtp_supervise FLAG FILE: run the caller's command under srun, in its run_dir, and queue the job again where it is to
# be continued. FLAG is the argument that names the folder, FILE is in it once the run has begun. Returns srun's status.
dtp_supervise() {
    local flag=--$1 other=--${1//-/_} begun=$2
    # Where the run really goes, and what it goes on from, if the arguments say so.
    local word before= resume=auto
    for word in "${command[@]}"; do
        case $before in "$flag" | "$other") run_dir=$word ;; --resume) resume=$word ;; esac
        case $word in "$flag"=* | "$other"=*) run_dir=${word#*=} ;; --resume=*) resume=${word#*=} ;; esac
        before=$word
    done
    # As the run does; a shell leaves it after an equals sign or in quotes.
    case $run_dir in "~" | "~/"*) run_dir=$HOME${run_dir#"~"} ;; esac
    if [[ $resume != auto && -f $run_dir/$begun ]]; then
        # Begun from a checkpoint elsewhere: a later start goes on with what there is here.
        command+=(--resume "$run_dir")
    fi
    mkdir -p -- "$run_dir" 2>/dev/null ||
        dtp_fail "the run's folder $run_dir cannot be made; set DTP_RUN_DIR to one that can"
    local log=$run_dir/slurm-$job.out
    { : >>"$log"; } 2>/dev/null || dtp_fail "$log cannot be written; set DTP_RUN_DIR to a folder that can"

    # Since SLURM 22.05 srun no longer takes this over from sbatch, and would give each task one core.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    fi

    local start="job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-}:"
    echo "$start see $log"
    echo "$start ${command[*]}" >>"$log"
    # Preempted or cancelled, this shell gets the SIGTERM that is for the run too; it would die and take srun along.
    # Not '': children inherit that a signal is ignored.
    trap : TERM
    # Tasks end by themselves when one of them fails. Those that do not are ended after five minutes; not at once, for
    # the tasks of a run that stops with a checkpoint end one after another, and killing one would hide status 75.
    local status=0
    srun --kill-on-bad-exit=0 --wait=300 "${command[@]}" >>"$log" 2>&1 || status=$?
    trap - TERM

    # Killed by SIGUSR1 or SIGTERM: it came while Python started, before the run could listen to it.
    local to_be_continued=
    case $status in 75 | $((128 + 10)) | $((128 + 15))) to_be_continued=yes ;; esac

    if ((status == 0)); then
        echo "job $job has finished"
    elif ! dtp_still_running; then
        echo "job $job was ended from outside; unless it is queued again, submit it with DTP_RUN_DIR=$run_dir to go on"
    elif [[ -n $to_be_continued ]]; then
        # Before the request, for SLURM ends this shell with it.
        echo "job $job stopped before its end and is to be queued again"
        if ! scontrol requeue "$job"; then
            echo "error: job $job cannot be queued again; submit it with DTP_RUN_DIR=$run_dir to go on" >&2
            return "$status"
        fi
        status=0
    elif [[ ! -f $run_dir/$begun ]]; then
        # The run never began: nothing to keep a folder for.
        cat "$log"
        rm -f "$log"
        rmdir "$run_dir/checkpoints" "$run_dir" 2>/dev/null || true
    else
        # The last error of this start; what follows the last line that announces one.
        sed -n "/^job $job, start /h; /^error: /h; \$ { x; /^error: /p; }" "$log" >&2
        echo "job $job failed with status $status; see $log; submit it with DTP_RUN_DIR=$run_dir to go on" >&2
    fi
    return "$status"
}
