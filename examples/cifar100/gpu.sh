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

try() { # a command, within the time left; what it can't do is told, and the rest goes on
    echo "== $*"
    timeout "$(left)m" "$@" || echo "== status $? of: $*" >&2
}

has() { "$python" -c "import $1" 2>/dev/null; }

if [ "$(left)" -gt 0 ] && [ ! -e "$out/tested" ] && has pytest; then
    try "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py
    touch "$out/tested"
fi

for precision in tf32 bf16; do
    file=$out/cuda-epoch-$precision.json
    if [ "$(left)" -gt 0 ] && [ ! -e "$file" ]; then
        try "$python" -m benchmarks.epoch --device cuda --precision "$precision" --compile --out "$file"
    fi
done

sources="single human entropy maxl weighted random"
has sklearn && sources="$sources kmeans"
for protocol in released modern; do
    if [ "$(left)" -gt 0 ]; then
        # shellcheck disable=SC2086
        try "$python" -m examples.cifar100.train --data "$data" --cache "$out/cache" --out "$out/$protocol" --resume \
            --device cuda --precision bf16 --protocol "$protocol" --sources $sources --seeds $seeds \
            --processes "$processes" --checkpoint-minutes 2 --time-limit "$(left)"
    fi
    if compgen -G "$out/$protocol/*.json" >/dev/null && has matplotlib; then
        try "$python" -m examples.cifar100.summarize "$out/$protocol" --out "$out/cifar100-$protocol"
    fi
done

if [ "$(left)" -gt 10 ] && [ ! -e "$out/bench/costs.json" ] && has matplotlib; then
    try "$python" -m benchmarks.run --device cuda --precision tf32 --networks vgg16-1 resnet18 --out "$out/bench"
fi
