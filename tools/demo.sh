#!/usr/bin/env bash
# The whole product once, on the trained demo model in etc/demo: what the image holds, the memory plan, then a daemon that
# answers three questions through its socket: one with working, one that goes on from it, one that calls a function. On a
# terminal the prompt follows. Needs a built tree (make). Its files lie in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=build/rel dir=build/demo image=etc/demo/demo.nib
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
mkdir -p "$dir"

say "The model image"
"$bin/nibble" info "$image"
"$bin/nibble" verify "$image"

say "The memory plan that a daemon carves from"
printf 'image:\n  path: %s\nengine:\n  ctx_tokens: 4096\n  slots: 2\n' "$PWD/$image" >"$dir/nibbled.yaml"
"$bin/nibbled" --config "$dir/nibbled.yaml" --plan

say "Three questions to a daemon (reasoning dimmed)"
"$bin/nibble" chat --demo

