#!/usr/bin/env bash
# Everything that needs a GPU: the gpu tests, then the benchmarks. Results go to $OUT. It takes
# less than nine minutes. Where bitsandbytes is not installed, put an unpacked wheel on PYTHONPATH
# first, and TRL 1.16.0 too, for its line in the table of steps. For the other rows of that table,
# and for the longest sequences: python3 -m benchmarks.step --device cuda
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
python3 -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider 2>&1 | tee "$OUT/gpu-tests.txt"
tests=$?
python3 -m benchmarks.gradients "$OUT/gradients-cuda.json" 2>&1 | tee "$OUT/gradients-cuda.txt"
timeout 400 python3 -m benchmarks.step --device cuda --skip-longest \
  --rows "8B nf4 b1" "8B nf4 b8" "1B nf4 b8" --output "$OUT/step-cuda" 2>&1 |
  tee "$OUT/step-cuda.txt"
exit "$tests"
