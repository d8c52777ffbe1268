#!/usr/bin/env bash
# Everything that this project claims, or would like to, about a GPU, in one command:
#
#     benchmarks/gpu.sh --cifar DIR [--mnist DIR] [--python PYTHON] [--quick]
#
# DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg (--cifar) and MNIST/raw (--mnist). It needs one GPU and about an hour
# on one like an H200; --quick, about five minutes, leaves out the long runs. Each part that fails is named at the end and
# stops no other. Results are JSON files in benchmarks/results/gpu/, the output of each part a .log beside them.
set -uo pipefail

cifar="" mnist="" python=python quick=0
while [ $# -gt 0 ]; do
    if [ "$1" != --quick ] && [ $# -lt 2 ]; then
        echo "gpu.sh: expected a value after $1, found none; give one." >&2
        exit 2
    fi
    case "$1" in
        --cifar) cifar=$2; shift 2 ;;
        --mnist) mnist=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        --quick) quick=1; shift ;;
        *) echo "gpu.sh: unknown option $1; known are --cifar DIR, --mnist DIR, --python PYTHON, --quick" >&2; exit 2 ;;
    esac
done
[ -z "$cifar" ] || cifar=$(realpath -m "$cifar")
[ -z "$mnist" ] || mnist=$(realpath -m "$mnist")
case "$python" in */*) python=$(realpath -s "$python") ;; esac
cd "$(dirname "$0")/.."
if [ -n "$mnist" ] && [ ! -d "$mnist/MNIST/raw" ]; then
    echo "gpu.sh: expected --mnist DIR with DIR/MNIST/raw in it, found '$mnist'; give another." >&2
    exit 2
fi
if [ "$quick" = 0 ] && [ ! -d "${cifar:-/nowhere}/train" ]; then
    echo "gpu.sh: expected --cifar DIR with DIR/train in it, found '${cifar}'; give it, or --quick." >&2
    exit 2
fi
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch finds no GPU here; run it where nvidia-smi shows one." >&2
    exit 2
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
out=benchmarks/results/gpu
mkdir -p "$out"
failed=()

part() { # part NAME COMMAND...
    local name=$1
    shift
    echo "== $name: $*"
    local begin=$SECONDS
    "$@" >"$out/$name.log" 2>&1 || failed+=("$name")
    tail -n 3 "$out/$name.log"
    echo "   $((SECONDS - begin)) s"
}

vgg=(--model vgg --data cifar10 --shape 3 32 32)

# Correct first.
part tests "$python" -m pytest -m gpu -q -s -p no:cacheprovider
# Literal against fast form and against backprop; then layout and number format.
part engines "$python" benchmarks/engines.py "${vgg[@]}" --rounds 10 --output "$out/engines.json"
part engines-tf32 "$python" benchmarks/engines.py "${vgg[@]}" --rounds 10 --tf32 --output "$out/engines-tf32.json"
part engines-contiguous "$python" benchmarks/engines.py "${vgg[@]}" --rounds 10 --tf32 --contiguous \
    --output "$out/engines-contiguous.json"
part engines-memory "$python" benchmarks/engines.py "${vgg[@]}" --rounds 10 --tf32 --engines literal graph \
    --output "$out/engines-memory.json" -- --feedback-memory 16384
part iterations "$python" benchmarks/engines.py "${vgg[@]}" --rounds 10 --tf32 --iterations 1 0.5 0.2 0.1 0.05 \
    --output "$out/iterations.json"
part engines-mlp "$python" benchmarks/engines.py --model mlp --data mnist --shape 1 28 28 --rounds 20 \
    --output "$out/engines-mlp.json"
part tf32 "$python" benchmarks/tf32.py --channels 128 128 256 256 512 --batch-size 128 --output "$out/tf32.json"
# What limits a batch.
for engine in bp literal reduced graph; do
    part "profile-$engine" "$python" benchmarks/profile_step.py "${vgg[@]}" --engine "$engine" --tf32 \
        --output "$out/profile-$engine.json"
done
if [ "$quick" = 1 ]; then
    [ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
    exit 0
fi

train() { # train NAME OPTIONS...
    local name=$1
    shift
    part "$name" "$python" main.py --data imagefolder --data-dir "$cifar" --model vgg --val-size 0 --test-weights last \
        --tf32 --diagnostics-every 10 --run-dir "runs/gpu/$name" --resume auto "$@"
    cp -f "runs/gpu/$name/summary.json" "$out/$name.json" 2>/dev/null
}

# 90 epochs, published hyper-parameters; each summary has accuracy, wall time and the share of the feedback phase.
train bp-vgg --algo bp --config bp_vgg_cifar10
train dtp-vgg-cheap --algo dtp --config dtp_vgg_cifar10_cheap
train dtp-vgg --algo dtp --config dtp_vgg_cifar10
train dtp-vgg-fixed --algo dtp --config dtp_vgg_cifar10 --routing fixed
train dtp-vgg-cheap-fixed --algo dtp --config dtp_vgg_cifar10_cheap --routing fixed
if [ -n "$mnist" ]; then
    for algo in bp dtp; do
        part "$algo-lenet-mnist" "$python" main.py --algo "$algo" --model lenet --data mnist --data-dir "$mnist" --tf32 \
            --run-dir "runs/gpu/$algo-lenet-mnist" --resume auto
        cp -f "runs/gpu/$algo-lenet-mnist/summary.json" "$out/$algo-lenet-mnist.json" 2>/dev/null
    done
fi
for algo in bp dtp; do
    part "$algo-lenet-cifar10" "$python" main.py --algo "$algo" --model lenet --data imagefolder --data-dir "$cifar" \
        --config "${algo}_lenet_cifar10" --tf32 --run-dir "runs/gpu/$algo-lenet-cifar10" --resume auto
    cp -f "runs/gpu/$algo-lenet-cifar10/summary.json" "$out/$algo-lenet-cifar10.json" 2>/dev/null
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
