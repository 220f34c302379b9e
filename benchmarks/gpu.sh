#!/usr/bin/env bash
# Ten minutes on one GPU: conformance, training, input, serving and a fine-tuning, each bounded in time.
# usage: benchmarks/gpu.sh [PYTHON] [FOLDER]; writes FOLDER/STEP.md as each step ends.
set -u
cd "$(dirname "$0")/.." || exit 2
PYTHON=${1:-.venv/bin/python}
OUT=${2:-benchmarks/gpu}
DATA=${DATA:-../shared/data}
mkdir -p "$OUT"
failed=0

step() { # NAME SECONDS COMMAND…
  local name=$1 seconds=$2 start=$SECONDS status=0
  shift 2
  echo "== $name, at most $seconds s: $*"
  timeout --kill-after=10 "$seconds" "$@" >"$OUT/$name.md" 2>"$OUT/$name.log" || status=$?
  cat "$OUT/$name.md"
  if [ "$status" -ne 0 ]; then
    failed=1
    echo "$name: exit status $status after $((SECONDS - start)) s (124: out of time); see $OUT/$name.log"
  fi
}

step conformance 180 "$PYTHON" benchmarks/gpu_conformance.py
step training 200 "$PYTHON" benchmarks/training.py --device cuda --only resnet50 yolo11n fasterrcnn --rounds 1
step input 50 "$PYTHON" benchmarks/input_pipeline.py --only loader --rounds 1
step serving 70 "$PYTHON" benchmarks/serving.py --device cuda --models resnet18 --contenders ceiling serve \
  --rounds 1 --seconds 5 --warm-up 2
if [ -d "$DATA" ]; then
  step fine-tuning 100 "$PYTHON" benchmarks/few_images.py --device cuda --data-root "$DATA" --only few --rounds 1 \
    --image-size 128 --results "$OUT/few_images.json"
fi
exit "$failed"
