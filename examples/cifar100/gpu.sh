#!/usr/bin/env bash
# Everything that waits for a GPU, in one command that can be given again to go on:
#
#   examples/cifar100/gpu.sh DATA OUT MINUTES
#
# DATA: CIFAR-100, see examples/cifar100/data.py. OUT: a folder for results and checkpoints. MINUTES: when to stop.
# PYTHON, SEEDS and PROCESSES (runs side by side) may be set.
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: examples/cifar100/gpu.sh DATA OUT MINUTES" >&2
    exit 2
fi
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
minutes=$3
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python}
seeds=${SEEDS:-0 1 2}
processes=${PROCESSES:-6}

left() { echo $((minutes - SECONDS / 60)); }

step() { # a result that may be there already, and the command that makes it
    [ -e "$1" ] || { echo "== ${*:2}"; "${@:2}"; }
}

if "$python" -c 'import pytest' 2>/dev/null && [ ! -e "$out/tested" ]; then
    "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py && touch "$out/tested"
fi

for precision in tf32 bf16; do
    step "$out/cuda-epoch-$precision.json" \
        "$python" -m benchmarks.epoch --device cuda --precision "$precision" --compile \
        --out "$out/cuda-epoch-$precision.json"
done
step "$out/bench/costs.json" \
    "$python" -m benchmarks.run --device cuda --precision tf32 --networks vgg16-1 resnet18 --out "$out/bench"

sources="single human entropy maxl weighted random"
"$python" -c 'import sklearn' 2>/dev/null && sources="$sources kmeans"
for protocol in released modern; do
    # shellcheck disable=SC2086
    "$python" -m examples.cifar100.train --data "$data" --cache "$out/cache" --out "$out/$protocol" --resume \
        --device cuda --precision bf16 --protocol "$protocol" --sources $sources --seeds $seeds \
        --processes "$processes" --checkpoint-minutes 2 --time-limit "$(left)"
    if compgen -G "$out/$protocol/*.json" >/dev/null && "$python" -c 'import matplotlib' 2>/dev/null; then
        "$python" -m examples.cifar100.summarize "$out/$protocol" --out "$out/cifar100-$protocol"
    fi
done
