#!/usr/bin/env bash
# A real SLURM of two nodes on one machine, to try the scripts of this folder on, and for the tests:
#
#     sudo slurm/local_cluster.sh install          # Debian's and Ubuntu's packages
#     eval "$(slurm/local_cluster.sh up)"          # starts it and sets SLURM_CONF; does nothing where it runs already
#     sbatch slurm/vgg_dtp.sh --model mlp --data digits
#     slurm/local_cluster.sh down                  # cancels what still runs in it, and stops it
#
# up and down take a folder (default /tmp/dtp-slurm), in which all of the cluster's files lie: configuration, munge key,
# state, logs. Nothing outside it is read or changed, so it goes beside a SLURM that the machine may have, and beside
# another one in another folder. No systemd is needed, but root.
#
# Nodes n1 and n2 claim 16 CPUs, 128 GB and 4 GPUs each, whatever the machine has, so that the scripts' requests fit;
# nothing is enforced. Partition main is the default; its jobs preempt those of partition low, with a minute's grace.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

readonly NODES=(n1 n2)
readonly SECONDS_TO_START=60
# Longer than SLURM waits between SIGTERM and SIGKILL, which is KillWait below.
readonly SECONDS_TO_CANCEL=20

fail() {
    echo "error: $*" >&2
    exit 2
}

usage() {
    fail "expected install, up [FOLDER] or down [FOLDER], found '$*'; see the comments at the top of $0"
}

need_root() {
    ((EUID == 0)) || fail "a cluster of one's own needs root: sudo $0 $action"
}

install_packages() {
    command -v apt-get >/dev/null || fail "only Debian's packages are known here; install slurmctld, slurmd and munge"
    # RUNLEVEL: the packages' services, which have no configuration, are not to start.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

# The process id of one of the cluster's daemons, if it runs; the folder in its command line tells it from one that has
# got the same number since.
running() {
    local pid
    pid=$(cat "$folder/$1.pid" 2>/dev/null) || return 1
    [[ -n $pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$folder/" && echo "$pid"
}

# wait_until SECONDS COMMAND... : whether the command succeeded within that time.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

free_ports() {
    local base port
    # Between the ports at which the ranks of jobs meet, up to 24999, and those that the system gives to connections.
    while base=$((25000 + RANDOM % 7000)); do
        for port in "$base" $((base + 1)) $((base + 2)); do
            if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
                continue 2
            fi
        done
        echo "$base"
        return
    done
}

write_configuration() {
    local host base ports
    host=$(uname -n)
    host=${host%%.*}
    base=$(free_ports)
    ports="[$((base + 1))-$((base + 2))]"
    # FirstJobId: Lightning derives that port from the job's number, and two clusters on a machine should not share it.
    # cred_expire: as long as a requeued job waits before it starts, two minutes otherwise.
    # config_overrides: the nodes have what is written here, not what the machine has.
    cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdParameters=config_overrides
TaskProlog=$folder/task_prolog.sh
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
FirstJobId=$((1000 + base % 8000))
KillWait=10
GresTypes=gpu
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=$ports CPUs=16 RealMemory=128000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
CONF
    # No control groups are used, and slurmd shall not look for those that a container may lack: releases before 23.02
    # look, unless the first version is named.
    local cgroups=disabled
    [[ $(slurmd -V) =~ ' '(2[0-2]|23\.01)\. ]] && cgroups=cgroup/v1
    echo "CgroupPlugin=$cgroups" >"$folder/cgroup.conf"
    # Any four devices stand for GPUs; only their number counts.
    printf 'NodeName=n[1-2] Name=gpu File=%s\n' /dev/null /dev/zero /dev/full /dev/random >"$folder/gres.conf"
    # The ranks of a job meet under the name of its first node, which is a name to SLURM only. What a task prolog prints
    # so goes into the environment of the tasks.
    printf '#!/bin/sh\necho export MASTER_ADDR=127.0.0.1\n' >"$folder/task_prolog.sh"
    chmod +x "$folder/task_prolog.sh"
}

nodes_are_up() {
    local states
    states=$(sinfo --noheader --Node --partition=main --format=%t 2>/dev/null) || return 1
    [[ $(grep -cE '^(idle|mix|alloc|comp)$' <<<"$states") -eq ${#NODES[@]} ]]
}

start() {
    local name=$1
    shift
    running "$name" >/dev/null && return
    # Not the lock: it would be held for as long as the daemon runs.
    "$@" 9>&- </dev/null >>"$folder/start.log" 2>&1 || fail "$1 did not start; see $folder/*.log"
}

up() {
    need_root
    local program node
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || fail "$program is missing; install SLURM: $0 install"
    done
    ((${#folder} <= 80)) || fail "$folder: a path of at most 80 characters is needed for the sockets in it"
    if [[ ! -f $folder/slurm.conf ]]; then
        mkdir -p "$folder/state"
        dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
        chmod 400 "$folder/munge.key"
        write_configuration
    fi
    # --force: the folder may be one that root alone can enter, and munge would rather have everybody in.
    start munged munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" --log-file="$folder/munged.log"
    start slurmctld slurmctld -f "$SLURM_CONF"
    for node in "${NODES[@]}"; do
        start "slurmd.$node" slurmd -f "$SLURM_CONF" -N "$node"
    done
    wait_until "$SECONDS_TO_START" nodes_are_up ||
        fail "no two nodes after $SECONDS_TO_START seconds; see $folder/*.log, and take it down: $0 down $folder"
    echo "export SLURM_CONF=$(printf %q "$SLURM_CONF")"
}

no_jobs() {
    local jobs
    jobs=$(squeue --noheader 2>/dev/null) && [[ -z $jobs ]]
}

# What is left of the jobs here: their processes, whose own environment names the configuration and the node, and the
# ones that SLURM has for each, which work in the folder, and wait for a controller that may be gone.
job_processes() {
    local process names
    local -a sought=(-e "SLURM_CONF=$SLURM_CONF" "${NODES[@]/#/-eSLURMD_NODENAME=}")
    for process in /proc/[0-9]*; do
        names=$(tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -xF "${sought[@]}") || true
        if [[ $names == *SLURM_CONF=* && $names == *SLURMD_NODENAME=* ]] ||
            [[ $(cat "$process/comm" 2>/dev/null) == slurmstepd && $(readlink "$process/cwd") == "$folder" ]]; then
            echo "${process#/proc/}"
        fi
    done
}

down() {
    need_root
    [[ -f $folder/slurm.conf ]] || return 0
    local pid name
    if running slurmctld >/dev/null; then
        timeout 5 scancel --user=root || true
        wait_until "$SECONDS_TO_CANCEL" no_jobs || true
    fi
    for name in "${NODES[@]/#/slurmd.}" slurmctld munged; do
        if pid=$(running "$name"); then
            kill "$pid"
            wait_until 10 not running "$name" || kill -KILL "$pid"
        fi
    done
    for pid in $(job_processes); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    # The logs stay, to be read.
    find "$folder" -mindepth 1 -maxdepth 1 ! -name '*.log' ! -name lock -exec rm -rf {} +
}

not() {
    ! "$@" >/dev/null
}

action=${1:-}
folder=${2:-/tmp/dtp-slurm}
(($# >= 1 && $# <= 2)) || usage "$*"
case $action in
install)
    need_root
    install_packages
    ;;
up | down)
    need_root
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd -P)
    export SLURM_CONF=$folder/slurm.conf
    exec 9>"$folder/lock"
    flock 9
    "$action"
    ;;
*) usage "$*" ;;
esac
