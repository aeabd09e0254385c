#!/usr/bin/env bash
# After run.sh: puts the trained model into the tree and measures it.
#
#     tools/demo/finish.sh FOLDER        FOLDER as run.sh left it; needs a release build and $PYTHON with transformers
#
# Writes etc/demo/demo.nib and tokenizer.json, tests/vectors/demo_answers.jsonl and FOLDER/results.txt, which has the
# figures for etc/demo/README.md: exact match on the CPU row and in transformers, perplexity, the table of formats.
set -euo pipefail
here=$(dirname "$0") python=${PYTHON:-python3} from=$1
root=$here/../..
mkdir -p "$root/etc/demo"
rm -f "$root/etc/demo/demo.nib"
"$root/build/rel/nibble" pack "$from" "$root/etc/demo/demo.nib"
cp "$from/tokenizer.json" "$root/etc/demo/tokenizer.json"
"$python" "$root/tests/vectors/demo_gen.py"
{
    "$python" "$here/eval.py" daemon "$root/etc/demo/demo.nib"
    "$python" "$here/eval.py" transformers "$from"
    "$python" "$here/eval.py" formats "$from" --latent "$from"
} | tee "$from/results.txt"
