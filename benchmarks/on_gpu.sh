#!/usr/bin/env bash
# Everything worth knowing of one NVIDIA GPU in at most 25 minutes, from a plain checkout (torch, triton, numpy, timm).
#
#     bash benchmarks/on_gpu.sh [--dry-run-cpu] [PART ...]
#
# Parts: machine ceilings correctness kernels peers networks. Each has its own time limit, keeps what it has when
# that ends, and does not need the others. OUT: folder of the results (default benchmarks/results/gpu), in which nothing
# is overwritten. PYTHON: interpreter (default python3). --dry-run-cpu rehearses all parts on tiny shapes, the kernels in
# Triton's interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A limits=([machine]=60 [ceilings]=60 [correctness]=300 [kernels]=540 [peers]=240 [networks]=270)
parts=()
options=()
for word in "$@"; do
    if [[ $word == --dry-run-cpu ]]; then
        options=(--tiny)
        export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=""
    elif [[ -n ${limits[$word]:-} ]]; then
        parts+=("$word")
    else
        echo "unknown part '$word': use --dry-run-cpu or some of: machine ceilings correctness kernels peers networks" >&2
        exit 2
    fi
done
((${#parts[@]})) || parts=(machine ceilings correctness kernels peers networks)

out=${OUT:-benchmarks/results/gpu}
mkdir -p "$out"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
failed=()
for part in "${parts[@]}"; do
    limit=${limits[$part]}
    echo "== $part (at most $limit s)" | tee -a "$out/on_gpu.log"
    start=$SECONDS
    timeout --kill-after=10 "$limit" "${PYTHON:-python3}" "benchmarks/on_gpu/$part.py" \
        --output "$out/$part.json" --limit-s "$((limit - 20))" "${options[@]}" 2>&1 | tee -a "$out/on_gpu.log"
    code=${PIPESTATUS[0]}
    ((code == 0)) || failed+=("$part")
    echo "== $part: exit code $code after $((SECONDS - start)) s" | tee -a "$out/on_gpu.log"
done
rm -f "$out"/.*.partial
echo "results in $out; failed: ${failed[*]:-none}" | tee -a "$out/on_gpu.log"
((${#failed[@]} == 0))
