#!/usr/bin/env python3
"""Compares the GPU engine, end to end by logits, with transformers' GptOss on the same weights. Needs torch and transformers.

    compare.py IMAGE [--bin DIR] [--rows sm90,sm80] [--device cuda] [--long 16000] [--work DIR] ...

tests/gpu/logits runs prompts and given answers on the engine: alone and in batches of up to 64 of mixed lengths, in chunks that
cut pages and windows, steps that mix prompts and answers. Answers are given, not sampled, so that both sides see one text. The
reference is transformers with eager attention and experts, twice: in fp32 (the truth) and in bf16. What the two differ by at a
position, the largest difference of a logit, is the reference's own bf16 noise there. One run may miss an expert that a last bit
decides: where a verdict hangs on the noise, it is the largest of DRAWS runs, the embedding's last bits drawn anew for each.

Random weights of 24 layers amplify any rounding until the bf16 reference itself is lost. So parts of the weights are multiplied
by powers of two on both sides, which is exact. Three runs:
 - "sharp", all cases: a layer adds less to the stream, queries and the router are sharper, sinks wider, and the SwiGLU's clamp is
   reached. `mistakes` shows what one wrong formula would cost.
 - "calm", short texts: the layers add so little that the reference agrees with itself in bf16.
 - "plain", short texts: the weights as they are.

Passes when, on each row, two results for the same text and position are the same bits, whatever the batch and the chunks, and
 - sharp: the mean KL of the next-token distributions, truth to ours, is below 1e-3; bf16 to ours at most 1.25 times bf16 to truth,
   and 1e-4; ours has the truth's largest logit wherever the truth's margin (largest less second) exceeds the noise;
 - calm: the same, and bf16 to ours is below 1e-3;
 - plain: truth to ours is below truth to bf16, and the largest logit is the truth's at least as often as in bf16.
"""
import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

import gptoss

KL_LIMIT = 1e-3
FIRST, LOGITS, DECODE = 8, 1, 2  # core/engine.h
ANSWER, EARLY = 32, 8  # given tokens after a prompt; those that may share steps with other prompts
ROWS_MAX = 2048
SHIFTS = {"out": -3, "up": 2, "down": -6, "router": 1, "q": 1, "sinks": 2}
CALM = {"out": -5, "up": 2, "down": -8, "router": 1, "sinks": 2}
BATCHES = [2, 8, 17, 32, 64]
DRAWS = 16
begin = time.monotonic()


def log(text):
    print(f"[{time.monotonic() - begin:6.1f} s] {text}", flush=True)


class Steps:
    """Steps for tests/gpu/logits, and what each wanted row is: a dict with text, prompt, pos, decode, batch."""

    def __init__(self, texts):
        self.texts, self.steps, self.wanted = texts, [], []

    def add(self, rows):
        """rows: (slot, text, prompt, pos, decode, wants, batch); a slot's rows together."""
        packed = []
        for slot, text, prompt, pos, decode, wants, batch in rows:
            flags = FIRST * (pos == 0) | DECODE * decode | LOGITS * wants
            packed.append(struct.pack("<IIHH", self.texts[text][pos], pos, slot, flags))
            if wants:
                self.wanted.append({"text": text, "prompt": prompt, "pos": pos, "decode": decode, "batch": batch})
        self.steps.append(struct.pack("<I", len(packed)) + b"".join(packed))

    def batch(self, prompts, chunks):
        """prompts: (text, length), one a slot. Prompts are fed in chunks of the given sizes in turn, as many slots a step as fit;
        a slot that is done answers up to EARLY tokens beside the others' prompts, and the rest when no prompt is left."""
        fed, said, turn, size = [0] * len(prompts), [0] * len(prompts), 0, len(prompts)
        while min(said) < ANSWER:
            reading = [s for s in range(size) if fed[s] < prompts[s][1]]
            room = ROWS_MAX - (size - len(reading))
            rows = {}
            for s in range(size):
                text, length = prompts[s]
                if s not in reading and said[s] < (EARLY if reading else ANSWER):
                    rows[s] = [(s, text, length, length + said[s], 1, 1, size)]
                    said[s] += 1
            for s in reading:
                text, length = prompts[s]
                end = min(fed[s] + chunks[turn % len(chunks)], length, fed[s] + room)
                turn += 1
                rows[s] = [(s, text, length, p, 0, p + 1 == end, size) for p in range(fed[s], end)]
                room -= end - fed[s]
                fed[s] = end
            self.add([row for s in sorted(rows) for row in rows[s]])

    def write(self, path, slots, ctx):
        path.write_bytes(struct.pack("<III", slots, ctx, ROWS_MAX) + b"".join(self.steps))


def make_texts(image, long, seed):
    """Random ordinary tokens: two texts as long as the longest, four middle ones, eight short ones."""
    vocab = image.shape("embed")[0]
    rng = random.Random(seed)
    lengths = [long] * 2 + [min(long, 4097)] * 4 + [min(long, 1000)] * 8
    return [[rng.randrange(vocab * 9 // 10) for _ in range(n + ANSWER)] for n in lengths]


def prompts_of(long, size, rng):
    """`size` prompts of mixed lengths; from the same few texts, so that many of them come up in several batches."""
    pool = [(0, long), (2, min(long, 4097)), (6, min(long, 1000)), (7, 129), (8, 128), (9, 127), (10, 1), (1, long)]
    pool += [(3 + i % 3, max(min(long, 4097) - 64 * i, 2)) for i in range(6)]
    pool += [(6 + i % 8, max(min(long, 900) - 37 * i, 2)) for i in range(12)]
    while len(pool) < size:
        pool.append((rng.randrange(2, 14), rng.randrange(1, min(long, 400))))
    chosen = pool[:size]
    rng.shuffle(chosen)
    return chosen


def full_steps(texts, long):
    steps, rng = Steps(texts), random.Random(7)
    for text, length, sizes in (
        (10, 1, [2048]),
        (9, 127, [2048, 1]),
        (8, 128, [2048, 100]),
        (7, 129, [2048, 1, 100]),
        (6, min(long, 1000), [2048, 333, 63]),
        (2, min(long, 4097), [2048, 333, 65]),
        (0, long, [2048, 777]),
    ):
        for size in sizes:
            steps.batch([(text, length)], [size])
    for size in BATCHES:
        steps.batch(prompts_of(long, size, rng), [257, 100, 512, 63, 1, 1024])
    return steps


def short_steps(texts, long):
    short, rng = min(long, 500), random.Random(8)
    steps = Steps([t[: short + ANSWER] for t in texts])
    for text in range(6, 10):
        steps.batch([(text, short)], [100])
    steps.batch([(rng.randrange(14), rng.randrange(1, short + 1)) for _ in range(max(BATCHES))], [257, 100, 63, 1])
    return steps


def run_engine(options, steps, row, shifts, name):
    folder = pathlib.Path(options.work)
    listed, out = folder / f"{name}.steps", folder / f"{name}.{row}.logits"
    ctx = max(map(len, steps.texts))
    steps.write(listed, max(BATCHES), ctx)
    command = [str(options.bin / "logits"), options.image, str(listed), str(out), row, str(options.limit_mib)]
    command = ["timeout", str(options.limit_s)] + command + [f"{k}={v}" for k, v in shifts.items()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    log(f"{name}: {done.stdout.strip()}, {len(steps.wanted)} rows of logits")
    if done.returncode:
        print(f"FAILED: {name}, {row}: exit code {done.returncode} of {' '.join(command)}", flush=True)
        return None
    return out


class Side:
    """One reference's last hidden states of every text, and its head."""

    def __init__(self, model, texts, chunk):
        self.hidden = [model.hidden(text, chunk) for text in texts]
        self.head = model.model.lm_head.weight.data

    def logits(self, rows):
        hidden = torch.stack([self.hidden[r["text"]][r["pos"]] for r in rows])
        return torch.nn.functional.linear(hidden, self.head).float()


def kl(p, q):
    """Of log-probabilities, in nats, a row."""
    return (p.exp() * (p - q)).sum(-1)


def measure(rows, got, truth, half):
    """Tensors [rows] of what is compared."""
    names = ("kl", "kl_half", "kl_noise", "kl_back", "noise", "margin", "same", "same_half", "entropy", "top")
    out = {name: [] for name in names}
    for at in range(0, len(rows), 128):
        part = rows[at : at + 128]
        ours = torch.from_numpy(np.ascontiguousarray(got[at : at + len(part)])).to(truth.head.device)
        t, h = truth.logits(part), half.logits(part)
        lo, lt, lh = (torch.log_softmax(x.double(), -1) for x in (ours, t, h))
        best = t.topk(2).values
        found = {
            "kl": kl(lt, lo),
            "kl_half": kl(lh, lo),
            "kl_noise": kl(lh, lt),
            "kl_back": kl(lt, lh),
            "noise": (h - t).abs().amax(-1),
            "margin": best[:, 0] - best[:, 1],
            "same": ours.argmax(-1) == t.argmax(-1),
            "same_half": h.argmax(-1) == t.argmax(-1),
            "entropy": -(lt.exp() * lt).sum(-1),
            "top": lt.amax(-1).exp(),
        }
        for name in names:
            out[name].append(found[name].double().cpu())
    return {name: torch.cat(parts) for name, parts in out.items()}


def same_bits(rows, got):
    """Pairs of results for one text and position by one kind of kernels, and how many of them differ."""
    first, pairs, differ = {}, 0, 0
    for i, r in enumerate(rows):
        key = (r["text"], r["pos"], r["prompt"] if r["decode"] else None)
        if key in first:
            pairs += 1
            differ += not np.array_equal(got[first[key]], got[i])
        first.setdefault(key, i)
    return pairs, differ


GROUPS = {
    "all": lambda r: True,
    "prompt rows": lambda r: not r["decode"],
    "answer rows": lambda r: r["decode"],
    "answers at 1 to 200": lambda r: r["decode"] and r["pos"] < 200,
    "answers past 4,096": lambda r: r["decode"] and r["pos"] >= 4096,
    "answers past 15,900": lambda r: r["decode"] and r["pos"] >= 15900,
    "batch 1": lambda r: r["batch"] == 1,
    "batch 2 to 17": lambda r: 1 < r["batch"] <= 17,
    "batch 32": lambda r: r["batch"] == 32,
    "batch 64": lambda r: r["batch"] == 64,
}


def report(title, rows, got, m):
    print(f"\n{title}\n| rows | positions | KL truth, ours: mean | median | largest | truth, bf16 | bf16, ours | bf16, truth | argmax where decided |")
    print("|---|---|---|---|---|---|---|---|---|")
    decided = m["margin"] > m["noise"]
    for name, test in GROUPS.items():
        pick = torch.tensor([bool(test(r)) for r in rows])
        if not pick.any():
            continue
        k, d = m["kl"][pick], decided[pick]
        print(
            f"| {name} | {len(k)} | {k.mean():.1e} | {k.median():.1e} | {k.max():.1e} | {m['kl_back'][pick].mean():.1e} "
            f"| {m['kl_half'][pick].mean():.1e} | {m['kl_noise'][pick].mean():.1e} | {int(m['same'][pick][d].sum())} of {int(d.sum())} |"
        )
    pairs, differ = same_bits(rows, got)
    print(
        f"entropy {m['entropy'].mean():.2f} nats ({m['entropy'].min():.2f} to {m['entropy'].max():.2f}), largest probability "
        f"{m['top'].mean():.3f}, margin {m['margin'].mean():.2f}, noise {m['noise'].mean():.2f}; argmax equal at all positions: ours "
        f"{m['same'].mean():.4f}, bf16 {m['same_half'].mean():.4f}; same bits in {pairs - differ} of {pairs} pairs",
        flush=True,
    )
    return decided, differ


def judge(title, rows, got, truth, half, rule):
    m = measure(rows, got, truth, half)
    decided, differ = report(title, rows, got, m)
    mean = {name: float(values.mean()) for name, values in m.items() if name.startswith("kl")}
    wrong = []
    if rule == "plain":
        if not mean["kl"] < mean["kl_back"]:
            wrong.append("ours is further from the truth than bf16 is")
        if not m["same"].sum() >= m["same_half"].sum():
            wrong.append("ours has the truth's largest logit less often than bf16")
    elif not mean["kl"] < KL_LIMIT:
        wrong.append("the mean KL from the truth is above the limit")
    elif not mean["kl_half"] <= 1.25 * mean["kl_noise"] + 1e-4:
        wrong.append("ours is further from bf16 than its noise explains")
    if rule == "calm" and not mean["kl_half"] < KL_LIMIT:
        wrong.append("the mean KL from bf16 is above the limit")
    if rule != "plain" and not decided.any():
        wrong.append("no position is decided")
    if differ:
        wrong.append("results that should be the same bits are not")
    for text in wrong:
        print(f"FAILED: {title}: {text}", flush=True)
    disputed = (decided & (m["same"] == 0)).nonzero().flatten().tolist() if rule != "plain" else []
    return len(wrong), {(rows[i]["text"], rows[i]["pos"]) for i in disputed}


def settle(model, title, texts, truth, disputed, chunk):
    """Positions where ours has another largest logit though the margin exceeds the noise of one run: how many exceed that of DRAWS."""
    failed = 0
    for text, pos in sorted(disputed):
        exact = truth.logits([{"text": text, "pos": pos}])[0]
        best, draw, noise = exact.topk(2).values, torch.Generator().manual_seed(pos), 0.0
        for _ in range(DRAWS):
            drawn = model.logits(model.hidden(texts[text][: pos + 1], chunk, draw)[-1:])[0]
            noise = max(noise, float((drawn - exact).abs().max()))
        margin = float(best[0] - best[1])
        failed += margin > noise
        what = "FAILED: another largest logit" if margin > noise else "not decided after all"
        print(f"{what}: {title}, text {text}, position {pos}: margin {margin:.4f}, noise {noise:.4f} of {DRAWS} runs", flush=True)
    return failed


@torch.no_grad()
def mistakes(model, text):
    """KL that one wrong formula causes, in the fp32 reference: what the comparison can see."""
    layers, rope, config = model.model.model.layers, model.model.model.rotary_emb, model.model.config
    ids = torch.tensor([text], device=model.device)

    def run():
        return torch.log_softmax(model.model(ids, use_cache=False).logits[0].double(), -1)

    def swap(things, name, value):
        old = [getattr(t, name) for t in things]
        for t in things:
            setattr(t, name, value)
        found = kl(right, run()).mean().item()
        for t, v in zip(things, old):
            setattr(t, name, v)
        return found

    right = run()
    found = {
        "window 127": swap([config], "sliding_window", 127),
        "rope factor 1": swap([rope], "attention_scaling", 1.0),
        "three experts": swap([layer.mlp.router for layer in layers], "top_k", 3),
        "clamp at 6": swap([layer.mlp.experts for layer in layers], "limit", 6.0),
        "swiglu alpha 1.6": swap([layer.mlp.experts for layer in layers], "alpha", 1.6),
    }
    for name, parameter, value in (
        ("no sinks in one layer", layers[1].self_attn.sinks, -1e4),
        ("no expert bias in one layer", layers[1].mlp.experts.down_proj_bias, 0),
    ):
        old = parameter.data.clone()
        parameter.data.fill_(value)
        found[name] = kl(right, run()).mean().item()
        parameter.data.copy_(old)
    print("a mistake's mean KL: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()), flush=True)


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("image")
    p.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/travel"))
    p.add_argument("--rows", default="sm90,sm80")
    p.add_argument("--device", default="cuda")
    p.add_argument("--long", type=int, default=16000, help="longest prompt")
    p.add_argument("--chunk", type=int, default=512, help="tokens of a pass of the reference")
    p.add_argument("--limit-mib", type=int, default=0)
    p.add_argument("--limit-s", type=int, default=200, help="of one run of the engine")
    p.add_argument("--work", default=None, help="folder for steps and logits")
    options = p.parse_args()
    options.bin = options.bin.resolve()
    if options.long < 129:
        p.error("--long is the longest prompt; it is at least 129, past the window")
    return options


def main():
    options = parse()
    keep = tempfile.TemporaryDirectory()
    options.work = options.work or keep.name
    texts = make_texts(gptoss.Image(options.image), options.long, 5)
    full, short = full_steps(texts, options.long), short_steps(texts, options.long)
    runs = [("sharp", full, SHIFTS, "sharp"), ("calm", short, CALM, "calm"), ("plain", short, {}, "plain")]
    rows = options.rows.split(",")
    files = {(name, row): run_engine(options, steps, row, shifts, name) for name, steps, shifts, _ in runs for row in rows}
    model = gptoss.Model(options.image, options.device, {})
    log("weights on the device in bf16")
    half, truth = {}, {}
    for sides, what in (half, "bf16"), (truth, "fp32"):
        if what == "fp32":
            model.widen()
        for name, steps, shifts, rule in runs:
            model.shift(shifts)
            sides[name] = Side(model, steps.texts, options.chunk)
            log(f"{name}: reference in {what}")
            if what == "fp32" and rule == "sharp":
                mistakes(model, texts[6])
    failed, disputed = 0, {}
    for name, steps, shifts, rule in runs:
        print(f"{name}: shifts {json.dumps(shifts)}")
        for row in rows:
            if not files[name, row]:
                failed += 1
                continue
            got = np.memmap(files[name, row], np.float32, "r").reshape(len(steps.wanted), -1)
            bad, more = judge(f"{name}, {row}", steps.wanted, got, truth[name], half[name], rule)
            failed += bad
            disputed.setdefault(name, set()).update(more)
            log("compared")
            del got
            os.unlink(files[name, row])
    model.narrow()
    for name, steps, shifts, _ in runs:
        model.shift(shifts)
        failed += settle(model, name, steps.texts, truth[name], disputed.get(name, ()), options.chunk)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
