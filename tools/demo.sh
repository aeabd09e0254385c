#!/usr/bin/env bash
# The whole product once: makes a model image, prints its memory plan, starts the daemon, asks it a question through the
# socket, shows the answer arriving, and stops it. Needs a built tree (make). Everything lies in build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=build/rel dir=build/demo
image=$dir/small.nib socket=$PWD/$dir/nibbled.sock
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
mkdir -p "$dir"

say "A model image"
echo "No trained weights are shipped yet: this is a random model (shape 'small', seed 1). The machinery is real, the"
echo "answer will be noise."
[ -f "$image" ] || "$bin/nibble" synth small "$image" --seed 1
"$bin/nibble" info "$image"

cat >"$dir/nibbled.yaml" <<EOF
image:
  path: $PWD/$image
engine:
  ctx_tokens: 4096
  slots: 2
socket:
  path: $socket
EOF
say "The memory plan the daemon will carve from"
"$bin/nibbled" --config "$dir/nibbled.yaml" --plan

say "The daemon boots from the image"
"$bin/nibbled" --config "$dir/nibbled.yaml" 2>"$dir/nibbled.log" &
daemon=$!
stop() {
    kill -TERM "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
}
trap stop EXIT
for _ in $(seq 300); do
    if curl -sf --unix-socket "$socket" http://localhost/health >/dev/null; then break; fi
    kill -0 "$daemon" 2>/dev/null || { cat "$dir/nibbled.log" >&2; exit 1; }
    sleep 0.1
done
curl -sf --unix-socket "$socket" http://localhost/health || { cat "$dir/nibbled.log" >&2; exit 1; }
echo

say "A question, streamed (reasoning dimmed)"
"$bin/nibble" chat --socket "$socket" --max-tokens 96 "What can an appliance do with a language model?"

say "The same with curl, the first events"
curl -sN --unix-socket "$socket" http://localhost/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model":"small","stream":true,"max_tokens":4,"seed":7,"messages":[{"role":"user","content":"Hello"}]}' |
    cut -c1-150

say "SIGTERM: it drains and stops"
kill -TERM "$daemon"
code=0
wait "$daemon" || code=$?
trap - EXIT
tail -n 3 "$dir/nibbled.log"
echo "exit code $code"
[ "$code" -eq 0 ] || exit 1

if [ -t 0 ] && [ -t 1 ]; then
    say "To go on by hand"
    echo "$bin/nibbled --config $dir/nibbled.yaml &"
    echo "$bin/nibble chat --socket $socket"
fi
