#!/usr/bin/env bash
# Everything that needs a GPU: the gpu tests, then the benchmarks, with the results in $OUT. Runs in under nine minutes.
# Where bitsandbytes is not installed, put an unpacked wheel on PYTHONPATH first.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
python3 -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider 2>&1 | tee "$OUT/gpu-tests.txt"
tests=$?
python3 benchmarks/gradients.py "$OUT/gradients-cuda.json" 2>&1 | tee "$OUT/gradients-cuda.txt"
exit "$tests"
