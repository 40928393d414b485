#!/usr/bin/env bash
# Everything that waits for a GPU, in one command that can be given again to go on:
#
#   examples/cifar100/gpu.sh DATA OUT MINUTES
#
# DATA: CIFAR-100, see examples/cifar100/data.py. OUT: a folder for results and checkpoints. MINUTES: when to stop.
# PYTHON (a name, or a whole path), SEEDS and PROCESSES (runs side by side) may be set.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: examples/cifar100/gpu.sh DATA OUT MINUTES" >&2
    exit 2
fi
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
minutes=${3%%.*}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python}
seeds=${SEEDS:-0 1 2}
processes=${PROCESSES:-6}

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package need not be installed

left() { echo $((minutes - SECONDS / 60)); }

try() { # at most how many minutes, and a command; what it can't do is told, and the rest goes on
    local most=$1
    shift
    if [ "$(left)" -le 0 ]; then return; fi
    if [ "$most" -gt "$(left)" ]; then most=$(left); fi
    echo "== $*"
    timeout "${most}m" "$@" || echo "== status $? of: $*" >&2
}

epoch() { # measures an epoch in a precision, unless it has been
    local file=$out/cuda-epoch-$1.json
    [ -e "$file" ] || try "$2" "$python" -m benchmarks.epoch --device cuda --out "$file" "${@:3}"
}

has() { "$python" -c "import $1" 2>/dev/null; }

if [ ! -e "$out/tested" ] && has pytest; then
    try 5 "$python" -m pytest -q -p no:cacheprovider tests/package/test_cuda.py
    touch "$out/tested"
fi

epoch tf32 5 --precision tf32
epoch bf16 5 --precision bf16

sources="single human entropy maxl weighted random"
if has sklearn; then sources="$sources kmeans"; fi
for protocol in released modern; do
    # shellcheck disable=SC2086
    try "$(left)" "$python" -m examples.cifar100.train --data "$data" --cache "$out/cache" --out "$out/$protocol" \
        --resume --device cuda --precision bf16 --protocol "$protocol" --sources $sources --seeds $seeds \
        --processes "$processes" --checkpoint-minutes 2 --time-limit "$(($(left) - 1))"
    if compgen -G "$out/$protocol/*.json" >/dev/null && has matplotlib; then
        try 2 "$python" -m examples.cifar100.summarize "$out/$protocol" --out "$out/cifar100-$protocol"
    fi
done

epoch bf16-compiled 10 --precision bf16 --compile
if [ ! -e "$out/cuda-metrics.json" ]; then
    try 3 "$python" -m benchmarks.metrics_overhead --device cuda --networks vgg16-1 resnet18 --batch 100 \
        --out "$out/cuda-metrics.json"
fi
if [ ! -e "$out/cuda-growth-of-runs.json" ]; then
    PYTHONPATH=tests:$PYTHONPATH try 3 "$python" -m faults.flat --device cuda --out "$out/cuda-growth-of-runs.json"
fi
if [ ! -e "$out/bench/costs.json" ] && has matplotlib; then
    try 15 "$python" -m benchmarks.run --device cuda --precision tf32 --networks vgg16-1 resnet18 --out "$out/bench"
fi
