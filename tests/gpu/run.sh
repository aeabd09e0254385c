#!/bin/bash
# The engine on this machine's GPU, from build/travel (make travel): the table, the demo model's golden answers (golden.py), tiny
# models beside transformers (answers.py, compare.py), speed at true shapes, trouble made on purpose, and with NIB_RUN_FILE=1 20b from a file: loading it, and its logits
# beside transformers'. That wants 14 GB for the image and 10 GB for logits. usage: tests/gpu/run.sh [FOLDER for files]
# Every wait is bounded; the last line counts failures.
set -u
cd "$(dirname "$0")/../.."
bin=build/travel dir=${1:-$(mktemp -d)} failed=0
try() {
    local limit=$1
    shift
    echo "+ $*"
    timeout "$limit" "$@" || { echo "FAILED ($?): $*"; failed=$((failed + 1)); }
}
nvidia-smi --query-gpu=name,driver_version,memory.used,ecc.mode.current --format=csv,noheader
try 30 $bin/nibble arch
NIB_BUILD=$bin try 60 python3 tests/wire/golden.py sm90 sm80

# against transformers, where there is one: greedy answers of the daemon, and logits of tiny models
if python3 -c 'import torch, transformers' 2>/dev/null; then
    try 30 $bin/nibble synth tiny "$dir/tiny.nib"
    NIB_BUILD=$bin try 100 python3 tests/gpu/answers.py
    try 150 python3 tests/gpu/compare.py "$dir/tiny.nib" --bin $bin --work "$dir"
else
    echo "no torch or no transformers: answers and logits are not compared"
fi

for batch in 1 8 64; do try 120 $bin/nibble bench --device gpu --shape 20b --prompt 1024 --tokens 128 --batch $batch; done
try 120 $bin/nibble bench --device gpu --shape 20b --prompt 1024 --tokens 128 --mask sm90
try 180 $bin/nibble bench --device gpu --shape 120b --prompt 1024 --tokens 128

try 400 tests/gpu/serve.sh 20b 64

NIB_BUILD=$bin try 200 python3 tests/gpu/trouble.py

if [ -n "${NIB_RUN_FILE:-}" ]; then
    try 200 $bin/nibble synth 20b "$dir/20b.nib" --vocab etc/o200k/o200k_base.tiktoken
    for pass in 1 2; do try 120 $bin/nibble bench "$dir/20b.nib" --device gpu --prompt 1024 --tokens 64; done
    try 400 python3 tests/gpu/compare.py "$dir/20b.nib" --bin $bin --work "$dir"
fi
echo "$failed failed"
[ "$failed" -eq 0 ]
