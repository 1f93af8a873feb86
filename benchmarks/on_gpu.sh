#!/usr/bin/env bash
# What only a GPU can show, in under ten minutes: tests, latencies, throughput, memory, steps of training.
#
#   benchmarks/on_gpu.sh [FOLDER]        FOLDER takes logs, JSON and the table README.md; results/gpu unless given
#   TINY=1 DEVICE=cpu benchmarks/on_gpu.sh runs/on_gpu       a rehearsal on a machine without a GPU
#
# Nothing is fetched. It needs Python with torch, triton and transformers, and the packages of `pip install rlrc[train,sim]`;
# what is missing makes its step fail, and the table says so. Each step has a time limit. One that fails or runs out of
# time does not keep the next from running. PYTHON names the interpreter (python3 unless given).
set -u
cd "$(dirname "$0")/.."
out=${1:-results/gpu} python=${PYTHON:-python3} device=${DEVICE:-cuda} tiny=${TINY:+--tiny}
mkdir -p "$out"
rm -f "$out"/steps.jsonl
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

step() {  # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 begun=$SECONDS
    shift 2
    echo "== $name: at most $limit s: $*"
    timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 3 "$out/$name.log"
    printf '{"step": "%s", "seconds": %d, "limit": %d, "exit": %d}\n' "$name" $((SECONDS - begun)) "$limit" $code \
        >>"$out/steps.jsonl"
}

step machine 30 "$python" -c "
import platform, torch, transformers, triton
print(platform.platform(), 'torch', torch.__version__, 'transformers', transformers.__version__, 'triton', triton.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'there is no GPU here')"
TRITON_INTERPRET=0 step tests 90 "$python" -m pytest -q -n 8 -p no:cacheprovider -rs tests/test_gpu.py \
    tests/packed_cuda_checks.py \
    tests/test_quantize.py::test_cuda_packs_as_the_processor_does_and_multiplies_what_is_packed
# Rows that end first are those that matter most: what runs out of time has its finished groups in the file.
step latency 240 "$python" benchmarks/latency_7b --device "$device" $tiny --out "$out/latency.json" \
    --only rlrc balanced dense-packed oft ratio-0.25 ratio-0.5 ratio-0.75 rlrc-overall dense
step products 60 "$python" benchmarks/on_gpu/products.py --device "$device" --out "$out/products.json"
step throughput 75 "$python" benchmarks/on_gpu/throughput.py --device "$device" $tiny --out "$out/throughput.json"
step training 75 "$python" benchmarks/on_gpu/training.py --device "$device" $tiny --out "$out/training.json"
"$python" benchmarks/on_gpu/table.py "$out"
