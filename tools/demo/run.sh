#!/usr/bin/env bash
# Trains the demo model on this machine's GPU, in one go:
#
#     tools/demo/run.sh SECONDS FOLDER [options of train.py, such as --resume FOLDER_OF_THE_LEG_BEFORE]
#
# FOLDER gets the tokenizer, the log, the checkpoint to go on from and the exported Hugging Face folder. Needs python3 (or
# $PYTHON) with torch, numpy, safetensors, tokenizers and regex. TOKENIZER names a tokenizer.json to use instead of learning one (a leg
# that goes on must use the one of the leg before). With NIB_BUILD (a folder with nibble and nibbled) the model is packed
# to FOLDER/demo.nib and asked NIB_QUESTIONS held-out questions (2250) on NIB_DEVICE (gpu).
set -euo pipefail
here=$(dirname "$0") python=${PYTHON:-python3} seconds=$1 out=$2
shift 2
mkdir -p "$out"

if [ -n "${TOKENIZER:-}" ]; then
    cp "$TOKENIZER" "$out/tokenizer.json"
else
    "$python" "$here/bpe.py" "$out"
fi
questions=208 kept=15
if [ -n "${NIB_BUILD:-}" ]; then questions=0 kept=3; fi
"$python" -W ignore "$here/train.py" --tokenizer "$out/tokenizer.json" --out "$out" --seconds "$seconds" --eval-seconds "$kept" \
    --questions "$questions" "$@" 2>&1 | tee "$out/log.txt"

if [ -n "${NIB_BUILD:-}" ]; then
    rm -f "$out/demo.nib"
    "$NIB_BUILD/nibble" pack "$out" "$out/demo.nib"
    "$python" "$here/eval.py" daemon "$out/demo.nib" --device "${NIB_DEVICE:-gpu}" --slots 32 --count "${NIB_QUESTIONS:-2250}" |
        tee -a "$out/log.txt"
fi
