#!/bin/bash
# What one streaming client of the daemon sees beside what `nibble bench` says of the engine, from build/travel (make travel), on
# made-up weights: no image is written. With CLIENTS, also that many at once, 1,024 tokens in and 1,024 out each.
# Fails when one client gets less than 95 % of the engine's tokens a second. usage: tests/gpu/serve.sh [SHAPE [CLIENTS]]
# NIB_SERVE_ARGS and NIB_BENCH_ARGS: more options for each, for example on the stand-in for libcuda.
set -u
cd "$(dirname "$0")/../.." || exit 1
bin=${NIB_BIN:-build/travel} shape=${1:-20b} many=${2:-} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prompt=1024 tokens=${NIB_SERVE_TOKENS:-512} clients=1 requests=8
if [ -n "$many" ]; then
    clients=1,$many requests=8,$many tokens=${NIB_SERVE_TOKENS:-1024}
fi

# the same context, answers and sampling for both
# shellcheck disable=SC2086
timeout 200 "$bin/nibble" bench --device gpu --shape "$shape" --prompt $prompt --tokens "$tokens" --format json ${NIB_BENCH_ARGS:-} \
    >"$work/engine.json" || { echo "FAILED: nibble bench"; exit 1; }
# shellcheck disable=SC2086
timeout 400 "$bin/nibble" bench serve --device gpu --shape "$shape" --clients $clients --requests $requests --prompt $prompt \
    --tokens "$tokens" --temperature 0 --json "$work/serve.json" ${OUT:+--plot "$OUT/serve.svg"} ${NIB_SERVE_ARGS:-} ||
    { echo "FAILED: nibble bench serve"; exit 1; }
[ -z "${OUT:-}" ] || cp "$work/engine.json" "$work/serve.json" "$OUT/"
python3 - "$work" <<'PY'
import json, sys
engine, serve = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("engine", "serve"))
one, seen = serve["points"][0], engine["decode_tokens_s"]
rate = 1e3 / one["token_ms"]["p50"]
print(f"engine: {seen:.1f} tokens/s, load {engine['load_s']:.1f} s; {engine['prompt']} tokens of prompt in "
      f"{engine['prompt'] / engine['prefill_tokens_s'] * 1e3:.1f} ms")
print(f"one client: {rate:.1f} tokens/s, {rate / seen:.1%} of the engine; first text after "
      f"{one['first_text_ms']['p50']:.1f} ms (p99 {one['first_text_ms']['p99']:.1f}); front {one['cpu_front_us_token']:.1f} us "
      f"of a CPU a token")
for p in serve["points"][1:]:
    print(f"{p['clients']:.0f} clients: {p['tokens_out_s']:.0f} tokens/s out, {p['tokens_in_s']:.0f} in, first text p50 "
          f"{p['first_text_ms']['p50']:.0f} ms, p99 {p['first_text_ms']['p99']:.0f}; between texts p50 "
          f"{p['between_texts_ms']['p50']:.2f} ms, p99 {p['between_texts_ms']['p99']:.2f}; {p['sent'] - p['finished']} errors; "
          f"front {p['cpu_front_us_token']:.1f} us a token")
bad = [p for p in serve["points"] if p["sent"] != p["finished"]]
sys.exit(f"FAILED: {bad[0]['first_error']}" if bad else "FAILED: less than 95 %" if rate < 0.95 * seen else 0)
PY
