#!/usr/bin/env bash
# What this project claims about a GPU, measured part by part:
#
#     benchmarks/gpu.sh [--out DIR] [--seconds N] [--cifar DIR] [--mnist DIR] [--python PYTHON] [--dry] PART...
#
#     tests        the tests that need a GPU
#     ratios       a batch of every engine and of --probes expected against backprop: float32 and TF32, both layouts
#     profile      where the time of a batch goes
#     train NAME   a training run to its end, see NAMES below; stopped by its limit, the same command goes on
#     sweep NAME   a sweep that dtp sweep --help lists, 12 runs at once; likewise
#     imagenet32   throughput on shapes of ImageNet 32x32, without images
#     report       all summaries and curves as one small archive
#
# What a part runs ends within --seconds (default 560; the first part's count from the start of the script). Its results are
# in --out (default benchmarks/results/gpu) at once: .json, .log, and runs.tgz with these and what is small of all runs.
# --cifar DIR holds train/CLASS/* and test/CLASS/*, --mnist DIR MNIST/raw (and FashionMNIST/raw). --dry does a little of
# everything on a CPU: what has a typo shows before a GPU is there. Nothing is downloaded. A part that fails is named at the
# end, with status 1, and stops no other.
set -uo pipefail

declare -A NAMES=(
    [bp-vgg]="--algo bp --config bp_vgg_cifar10"
    [dtp-vgg]="--config dtp_vgg_cifar10"
    [dtp-vgg-fixed]="--config dtp_vgg_cifar10 --routing fixed"
    [dtp-vgg-cheap]="--config dtp_vgg_cifar10_cheap"
    [dtp-vgg-tracking]="--config dtp_vgg_cifar10_tracking"
    [dtp-vgg-expected]="--config dtp_vgg_cifar10_expected"
    [dtp-vgg-no-lag]="--config dtp_vgg_cifar10_expected --feedback-iterations inf"
    [bp-lenet-cifar10]="--algo bp --config bp_lenet_cifar10"
    [dtp-lenet-cifar10]="--config dtp_lenet_cifar10"
    [dtp-lenet-cifar10-expected]="--config dtp_lenet_cifar10_expected"
    [bp-lenet-mnist]="--algo bp --config bp_lenet_mnist"
    [dtp-lenet-mnist]="--config dtp_lenet_mnist"
    [dtp-lenet-mnist-expected]="--config dtp_lenet_mnist_expected"
    [bp-lenet-fashion-mnist]="--algo bp --config bp_lenet_fashion-mnist"
    [dtp-lenet-fashion-mnist]="--config dtp_lenet_fashion-mnist"
    [dtp-lenet-fashion-mnist-expected]="--config dtp_lenet_fashion-mnist_expected"
)

fail() { echo "gpu.sh: $1" >&2; exit 2; }

out="" seconds=560 cifar="" mnist="" python="" dry=0
while [ $# -gt 0 ]; do
    case "$1" in
        --dry) dry=1; shift; continue ;;
        --out | --seconds | --cifar | --mnist | --python) [ $# -ge 2 ] || fail "expected a value after $1, found none." ;;
        --*) fail "unknown option $1; known are --out, --seconds, --cifar, --mnist, --python, --dry." ;;
        *) break ;;
    esac
    case "$1" in
        --out) out=$(realpath -m "$2") ;;
        --seconds) seconds=$2 ;;
        --cifar) cifar=$(realpath -m "$2") ;;
        --mnist) mnist=$(realpath -m "$2") ;;
        --python) python=$2 ;;
    esac
    shift 2
done
[[ $seconds =~ ^[1-9][0-9]{0,8}$ ]] || fail "--seconds: expected a whole number above 0, found '$seconds'."
# Many machines have python3 alone.
python=${python:-$(command -v python3 || echo python)}
case "$python" in */*) python=$(realpath -s "$python") ;; esac
[ $# -gt 0 ] || fail "expected a part: tests, ratios, profile, train NAME, sweep NAME, imagenet32 or report; found none."
cd "$(dirname "$0")/.." || exit 2
out=${out:-$PWD/benchmarks/results/gpu}
mkdir -p "$out" || fail "cannot write to $out; give another --out."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# What training, the tests and the benchmarks import.
modules=(torch lightning torchvision torchmetrics simple_parsing docstring_parser numpy matplotlib pandas PIL safetensors
    sklearn yaml)
[[ " $* " != *" tests "* ]] || modules+=(pytest)
missing=$("$python" - "${modules[@]}" 2>/dev/null <<'END'
import sys
from importlib.util import find_spec

print(*[name for name in sys.argv[1:] if find_spec(name) is None])
END
) || fail "$python does not run; give another --python."
[ -z "$missing" ] || fail "$python lacks ${missing// /, }; install what pyproject.toml lists."
if [ "$dry" = 0 ] && ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    fail "torch finds no GPU here; run it where nvidia-smi shows one, or --dry."
fi

# What is asked to stop has so long to do it: a run writes a checkpoint. 0 would be for ever.
failed=() grace=$((seconds < 20 ? 2 : seconds < 250 ? seconds / 10 : 25))
step() { # step NAME COMMAND...: within the time that the part has left, its output in NAME.log
    local name=$1 begin=$SECONDS left=$((until_second - SECONDS - grace)) status
    shift
    [ "$left" -gt 5 ] || { echo "   $name: no time left"; failed+=("$name"); return; }
    # What does not heed it is ended when the part's time is over.
    timeout -s TERM -k "$grace" "$left" "$@" >>"$out/$name.log" 2>&1
    status=$?
    # 75 and 124: stopped at its limit with a checkpoint, to go on.
    [ "$status" = 0 ] || failed+=("$name")
    echo "   $name: status $status, $((SECONDS - begin)) s: $(tail -n 1 "$out/$name.log" | cut -c1-300)"
}

# A little of everything where there is no GPU: of the feedback iterations too.
vgg=(--model vgg --data cifar10 --shape 3 32 32)
rounds=(--rounds 10)
little=() fewer=()
if [ "$dry" = 1 ]; then
    rounds=(--rounds 1 --batch-size 4)
    fewer=(-- --feedback-iterations 2)
    little=(--max-epochs 1 --limit-train-batches 2 --limit-val-batches 1 --diagnostics-every 0)
fi
tests=(tests/test_gpu.py tests/feedback/test_transmission.py)

data_of() { # the data of a run by its name or configuration, as words
    case "$1" in
        *vgg* | *cifar10* | *lag*) [ -n "$cifar" ] && echo "--data imagefolder --data-dir $cifar" ;;
        *mnist*) [ -n "$mnist" ] && echo "--data-dir $mnist" ;;
    esac
}

small_files() { # summaries, curves and configurations of all runs, with what lies in --out, as one archive
    local file results=() status
    for file in "$out"/*.json "$out"/*.log; do
        [ ! -e "$file" ] || results+=("${file##*/}")
    done
    [ ${#results[@]} = 0 ] || results=(-C "$out" "${results[@]}")
    # What lies in --out has no folder in its name here. Status 1: a file changed meanwhile.
    find runs \( -name summary.json -o -name metrics.csv -o -name config.yaml -o -name results.json -o -name results.md \
        -o -name '*.png' \) -not -path '*/checkpoints/*' -print0 2>/dev/null |
        tar czf "$out/.runs.tgz" --transform 's|^[^/]*$|results/&|' --null -T - "${results[@]}"
    status=$?
    if [ "$status" -le 1 ]; then
        mv -f "$out/.runs.tgz" "$out/runs.tgz"
    else
        failed+=("runs.tgz")
    fi
}

# The first part has less time by what was looked at before it.
begun=0
part() {
    until_second=$((begun + seconds))
    echo "== $*"
    case "$1" in
        tests)
            # By name: other tests import what a GPU machine may lack. A warning seen there first is no reason to fail.
            # Each is named as it ends, so that a run that is cut off tells how far it came, and where it stands if it
            # takes long. Twice -v, for the project's own options have -q.
            rm -f "$out/tests.log" "$out/tests-alone.log"
            step tests "$python" -m pytest "${tests[@]}" -m gpu -vv -s -W default -p no:cacheprovider \
                -o faulthandler_timeout=120
            grep -E "passed|failed|FAILED|ERROR|skipped|float32 error" "$out/tests.log"
            # After an error of the device all else fails in the same process. These would have failed by themselves:
            local alone test
            mapfile -t alone < <(sed -nE 's/^(FAILED|ERROR) (tests[^ ]*::.*)/\2/p' "$out/tests.log" |
                sed -E 's/(\]|::[^[ ]+) - .*/\1/' | sort -u)
            for test in "${alone[@]}"; do
                echo "   $test:"
                step tests-alone "$python" -m pytest "$test" -s -W default -p no:cacheprovider
            done
            ;;
        ratios)
            local form words
            for form in "tf32:--tf32" "fp32:" "tf32-contiguous:--tf32 --contiguous"; do
                read -ra words <<<"${form#*:}"
                step "ratios-${form%%:*}" "$python" benchmarks/engines.py "${vgg[@]}" "${rounds[@]}" "${words[@]}" \
                    --captured --output "$out/ratios-${form%%:*}.json" "${fewer[@]}"
            done
            step ratios-mlp "$python" benchmarks/engines.py --model mlp --data mnist --shape 1 28 28 "${rounds[@]}" \
                --captured --output "$out/ratios-mlp.json" "${fewer[@]}"
            step ratios-lenet "$python" benchmarks/engines.py --model lenet --data cifar10 --shape 3 32 32 "${rounds[@]}" \
                --tf32 --captured --output "$out/ratios-lenet.json" "${fewer[@]}"
            ;;
        profile)
            local engine some=()
            [ "$dry" = 0 ] || some=(--batches 1 --batch-size 4)
            for engine in bp reduced graph expected; do
                step "profile-$engine" "$python" benchmarks/profile_step.py "${vgg[@]}" --engine "$engine" --tf32 \
                    "${some[@]}" --output "$out/profile-$engine.json" "${fewer[@]}"
            done
            ;;
        train)
            local words place
            read -ra words <<<"${NAMES[$2]}"
            place=$(data_of "$2")
            [ -n "$place" ] || fail "train $2: expected --cifar DIR or --mnist DIR with its images, found none."
            read -ra place <<<"$place"
            # As published: no validation split on CIFAR-10, the last weights.
            case "$2" in *vgg* | *cifar10*) words+=(--val-size 0 --test-weights last) ;; esac
            # The few batches are less than those of the warm-up.
            case "$dry-$2" in 1-*tracking*) words+=(--feedback-warmup 0) ;; esac
            step "train-$2" "$python" main.py "${words[@]}" "${place[@]}" --tf32 --diagnostics-every 10 \
                --run-dir "runs/gpu/$2" --resume auto "${little[@]}"
            cp -f "runs/gpu/$2/summary.json" "$out/train-$2.json" 2>/dev/null
            ;;
        sweep)
            local place jobs=12
            [ "$dry" = 0 ] || jobs=1
            place=$(data_of "$2")
            [ -n "$place" ] || fail "sweep $2: expected --cifar DIR or --mnist DIR with its images, found none."
            read -ra place <<<"$place"
            OMP_NUM_THREADS=1 step "sweep-$2" "$python" -m dtp sweep "$2" --jobs "$jobs" "${place[@]}" --tf32 "${little[@]}"
            ;;
        imagenet32)
            local shape=(--model vgg --data imagenet32 --shape 3 32 32 --classes 1000)
            [ "$dry" = 0 ] && shape+=(--batch-size 256)
            step imagenet32 "$python" benchmarks/engines.py "${shape[@]}" "${rounds[@]}" --tf32 \
                --engines literal graph expected --captured --output "$out/imagenet32.json" "${fewer[@]}"
            ;;
        report) ;;
    esac
    small_files
    begun=$SECONDS
}

while [ $# -gt 0 ]; do
    case "$1" in
        tests | ratios | profile | imagenet32 | report) part "$1"; shift ;;
        train)
            [ -n "${2:-}" ] && [ -n "${NAMES[${2:-}]:-}" ] || fail "train: expected one of ${!NAMES[*]}; found '${2:-}'."
            part train "$2"; shift 2
            ;;
        sweep) [ $# -ge 2 ] || fail "sweep: expected its name, found none."; part sweep "$2"; shift 2 ;;
        *) fail "unknown part $1; known are tests, ratios, profile, train NAME, sweep NAME, imagenet32, report." ;;
    esac
done
[ ${#failed[@]} = 0 ] || { echo "failed or not finished: ${failed[*]}" >&2; exit 1; }
