#!/usr/bin/env python3
"""Compares arch/ref with Hugging Face transformers' GptOss in fp32, logits by logits. Part of `make vectors`.

    transformers_full.py            compares, and checks that engine_golden.txt is still what transformers says
    transformers_full.py --write    writes engine_golden.txt, the rows that `make check` uses

For each shape a seeded checkpoint is made twice by `nibble synth`: as an image for us and as a Hugging Face folder for
transformers (eager attention, eager experts, MXFP4 dequantised to fp32, which is exact; the loaded weights are compared
with the files here). Measured: ||ours - theirs|| / ||theirs|| of every position's logits, and greedy answers.
"""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "engine_golden.txt"
LOGITS = "build/rel/tests/vectors/logits"
NIBBLE = "build/rel/nibble"
LIMIT = 1e-4  # relative error a position may have
ANSWER = 128  # tokens of a greedy answer
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)

# shape, seed, prompt lengths, rows a step. 4,300 passes the window of 128 and the original context of 4,096.
CASES = [
    ("nano", 1, [1, 31, 128, 129, 300], 1),
    ("nano", 2, [4300], 50),
    ("tiny", 3, [1, 64, 127, 128, 129, 200, 500], 1),
    ("tiny", 4, [4300], 50),
    ("small", 5, [1, 150, 300], 10),
]
GOLDEN_CASES = [("nano", 6, 200), ("tiny", 7, 140)]


def run(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def dequantise(blocks, scales):
    """MXFP4 to fp32, [E, rows, K]: low nibble first."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    values = np.ldexp(E2M1[codes], scales.astype(np.int32)[..., None] - 127)
    return values.reshape(*values.shape[:-2], -1)


def check_weights(model, folder):
    """Every loaded tensor is the checkpoint's, bit for bit after widening."""
    state, seen = model.state_dict(), 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as f:
            names = list(f.keys())
            for name in names:
                if name.endswith("_scales"):
                    continue
                if name.endswith("_blocks"):
                    scales = f.get_tensor(name.replace("_blocks", "_scales")).numpy()
                    want = dequantise(f.get_tensor(name).numpy(), scales).transpose(0, 2, 1)
                    got = state[name.removesuffix("_blocks")]
                else:
                    want, got = f.get_tensor(name).float().numpy(), state[name]
                assert got.dtype == torch.float32 and np.array_equal(got.numpy(), want), name
                seen += 1
    assert seen == len(state), (seen, len(state))


def load(folder):
    model = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()
    assert model.config._attn_implementation == "eager"
    check_weights(model, folder)
    return model


@torch.no_grad()
def theirs(model, prompt, count):
    """Logits of all prompt positions and of `count` greedily answered tokens, and the count + 1 tokens."""
    out = model(torch.tensor([prompt]), use_cache=True)
    logits, cache = [out.logits[0].numpy()], out.past_key_values
    answer = [int(out.logits[0, -1].argmax())]
    for _ in range(count):
        out = model(torch.tensor([answer[-1:]]), past_key_values=cache, use_cache=True)
        logits.append(out.logits[0].numpy())
        answer.append(int(out.logits[0, -1].argmax()))
    return np.concatenate(logits), answer


def ours(image, prompt, every, count, folder, row="ref"):
    ids, logits = folder / "ids", folder / "logits"
    np.array(prompt, np.uint32).tofile(ids)
    text = run(LOGITS, str(image), str(ids), str(logits), row, str(every), str(count), "2")
    answer = [int(line) for line in text.split()]
    return np.fromfile(logits, np.float32).reshape(-(-len(prompt) // every) + count, -1), answer


def errors(a, b):
    return np.linalg.norm(a.astype(np.float64) - b, axis=1) / np.linalg.norm(b.astype(np.float64), axis=1)


def make(shape, seed, folder):
    image, checkpoint = folder / f"{shape}.nib", folder / f"{shape}_hf"
    run(NIBBLE, "synth", shape, str(image), "--seed", str(seed))
    run(NIBBLE, "synth", shape, str(checkpoint), "--seed", str(seed), "--format", "hf")
    config = json.loads((checkpoint / "config.json").read_text())
    return image, load(checkpoint), config["vocab_size"]


def compare(shape, seed, lengths, every):
    failed, positions, worst, agree = 0, 0, 0.0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        image, model, vocab = make(shape, seed, folder)
        rng = random.Random(seed)
        for length in lengths:
            prompt = [rng.randrange(vocab * 9 // 10) for _ in range(length)]
            want, answer_want = theirs(model, prompt, ANSWER)
            got, answer_got = ours(image, prompt, every, ANSWER, folder)
            steps = [min(p + every, length) - 1 for p in range(0, length, every)]
            error = errors(got, want[steps + list(range(length, length + ANSWER))])
            same = answer_got == answer_want
            positions, worst, agree = positions + len(error), max(worst, error.max()), agree + same
            failed += not same or not error.max() <= LIMIT
    print(f"| {shape} | {seed} | {', '.join(map(str, lengths))} | {positions:,} | {worst:.1e} | {agree}/{len(lengths)} |")
    return failed


def hex_row(values):
    return " ".join(f"{v:08x}" for v in np.asarray(values, np.float32).view(np.uint32))


def golden():
    """Prompts, answers and logits rows of two small models, and rope tables, as text."""
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for shape, seed, length in GOLDEN_CASES:
            _, model, vocab = make(shape, seed, folder)
            rng = random.Random(seed)
            prompt = [rng.randrange(vocab * 9 // 10) for _ in range(length)]
            logits, answer = theirs(model, prompt, ANSWER)
            lines.append(f"model {shape} {seed} {length} {len(answer)}")
            lines.append(" ".join(map(str, prompt)))
            lines.append(" ".join(map(str, answer)))
            for position in (0, 1, length - 1, length + 60, length + ANSWER - 1):
                lines.append(f"logits {position} {hex_row(logits[position])}")
        frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](model.config)
        lines.append(f"frequencies {hex_row(frequencies.numpy())}")
        for position in (0, 1, 127, 4095, 4096, 4299, 131071):
            angle = float(position) * frequencies
            lines.append(f"rope {position} {hex_row((angle.cos() * factor).numpy())} {hex_row((angle.sin() * factor).numpy())}")
    return "\n".join(lines) + "\n"


def drift(old, new):
    """Whether the two golden texts say the same but for rounding."""
    if len(old) != len(new):
        return True
    for a, b in zip(old, new):
        a, b = a.split(), b.split()
        if a[:1] in (["logits"], ["rope"]) and a[:2] == b[:2]:
            x, y = (np.array([int(v, 16) for v in t[2:]], np.uint32).view(np.float32) for t in (a, b))
            if len(x) != len(y) or not np.linalg.norm(x - y) <= LIMIT * np.linalg.norm(y):
                return True
        elif a != b:
            return True
    return False


def main():
    torch.set_num_threads(2)
    run("make", "-s", LOGITS, NIBBLE)
    text = golden()
    if "--write" in sys.argv:
        GOLDEN.write_text(text)
        print(f"wrote {GOLDEN.relative_to(ROOT)}: {len(text):,} bytes")
        return 0
    failed = int(drift(GOLDEN.read_text().splitlines(), text.splitlines()))
    if failed:
        print(f"{GOLDEN.relative_to(ROOT)} is not what transformers says")
    print("| shape | seed | prompts | positions | largest relative error | greedy answers of 128 equal |")
    print("|---|---|---|---|---|---|")
    failed += sum(compare(*case) for case in CASES)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
