#!/usr/bin/env python3
"""The demo's tools against their references, on seeded weights: no trained model is needed. Part of `make vectors`.

- bpe.py's tokenizer.json packs, and the daemon's ids are those of Hugging Face tokenizers on conversations of data.py;
- model.py's MXFP4 is that of core/mx_block.c, bit for bit, and what is exported means what was used in training;
- model.py in fp32, transformers' GptOss and arch/ref give the same logits for an exported checkpoint;
- unpack.py gives the checkpoint back; train.py learns, stops, and goes on from its checkpoint.
"""
import ctypes
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = ROOT / "tools" / "demo"
sys.path[:0] = [str(TOOLS), str(HERE), str(ROOT / "tests" / "wire")]

import daemon as d  # noqa: E402
import data  # noqa: E402
import model as bf16_model  # noqa: E402
import transformers_full as reference  # noqa: E402


def run(*command):
    return subprocess.run([str(c) for c in command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def in_fp32():
    """model.py with every bf16 an fp32: the same formulas without their rounding."""
    module = types.ModuleType("model_fp32")
    sys.modules["model_fp32"] = module
    text = (TOOLS / "model.py").read_text().replace("torch.bfloat16", "torch.float32")
    exec(compile(text, "model_fp32", "exec"), module.__dict__)
    return module


def seeded_model(module):
    torch.manual_seed(7)
    model = module.Model(module.Config())
    with torch.no_grad():
        for p in model.parameters():  # biases, norms and sinks that a wrong formula would show in; exact in bf16
            p += 0.05 * torch.randn_like(p) if p.ndim < 2 or p.shape[-1] == 8 else 0
            p.copy_(p.to(torch.bfloat16))
        for layer in model.layers:  # what MXFP4 makes of the experts, so that every reader has the same numbers
            layer.up_w.copy_(bf16_model.Mxfp4.apply(layer.up_w))
            layer.down_w.copy_(bf16_model.Mxfp4.apply(layer.down_w))
    return model


def check_mxfp4(folder):
    glue = folder / "glue.c"
    glue.write_text('#include "core/mx.h"\nvoid enc(const float *x, uint8_t *s, uint8_t *c, int n)\n'
                    "{ for (int i = 0; i < n; i++) nib_mxfp4_encode(x + 32 * i, s + i, c + 16 * i); }\n")
    run("cc", "-std=c11", "-O2", "-shared", "-fPIC", f"-I{ROOT}", glue, ROOT / "core/mx.c", ROOT / "core/mx_block.c", "-lm", "-o",
        folder / "mx.so")
    torch.manual_seed(8)
    w = torch.randn(64, 256, 256) * torch.exp(2 * torch.randn(64, 256, 1))
    w[0, 0, :32], w[0, 1, :32] = 0, 1.75
    w[0, 2] *= 1e-30
    w[1] = torch.randint(-24, 25, (256, 256)) / 4  # every midpoint
    blocks, scales = bf16_model.pack_blocks(w)
    x, n = np.ascontiguousarray(w.numpy().reshape(-1, 32)), w.numel() // 32
    s, c = np.zeros(n, np.uint8), np.zeros((n, 16), np.uint8)
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    ctypes.CDLL(str(folder / "mx.so")).enc(pointer(x), pointer(s), pointer(c), n)
    assert (s == scales.numpy().reshape(-1)).all() and (c == blocks.numpy().reshape(-1, 16)).all()
    used = bf16_model.Mxfp4.apply(w).float().numpy()
    assert np.array_equal(reference.dequantise(blocks.numpy(), scales.numpy()), used)
    print(f"MXFP4: {n} blocks, 0 different")


def check_tokenizer(folder):
    """Packs a checkpoint with the learnt tokenizer; ids through the daemon's /tokenize, run by run."""
    from tokenizers import Tokenizer

    tokenizer, count = Tokenizer.from_file(str(folder / "hf" / "tokenizer.json")), 0
    nibbled = d.Daemon(folder / "daemon", folder / "demo.nib")
    try:
        for c in itertools.islice(data.stream(9), 300):
            for part in re.split(r"<\|[a-z]+\|>", data.prompt_text(c) + data.answer_text(c)):
                if part:
                    ids = tokenizer.encode(part, add_special_tokens=False).ids
                    assert ids == nibbled.post("/tokenize", {"text": part}).json["tokens"], part
                    count += 1
    finally:
        nibbled.kill()
    print(f"tokenizer: {count} runs of text, 0 different")
    return tokenizer


def check_logits(folder, model, tokenizer):
    theirs, worst = reference.load(folder / "hf"), [0.0, 0.0]
    for c in itertools.islice(data.stream(10), 4):
        ids = tokenizer.encode(data.prompt_text(c) + data.answer_text(c), add_special_tokens=False).ids
        with torch.no_grad():
            want = theirs(torch.tensor([ids])).logits[0].numpy()
            mine = model.logits(model(torch.tensor([ids]))[0]).numpy()
        ours, _ = reference.ours(folder / "demo.nib", ids, 1, 0, folder)
        for i, got in enumerate((mine, ours)):
            worst[i] = max(worst[i], reference.errors(got, want).max())
    print(f"logits against transformers, largest relative error: model.py {worst[0]:.1e}, arch/ref {worst[1]:.1e}")
    assert max(worst) < reference.LIMIT


def check_training(folder):
    """A few steps of one layer; the loss falls, and a second leg begins where the first one ended."""
    def leg(out, *more):
        return run(sys.executable, TOOLS / "train.py", "--cpu", "--tokenizer", folder / "hf" / "tokenizer.json", "--out", out,
                   "--seconds", 600, "--steps", 6, "--tokens", 4608, "--workers", 1, "--questions", 0, "--layers", 1,
                   "--warmup", 2, *more)

    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", leg(folder / "a") + leg(folder / "b", "--resume", folder / "a"))]
    assert len(losses) == 4 and losses[0] > losses[1] > losses[3], losses
    assert len(json.loads((folder / "b" / "training.json").read_text())["legs"]) == 2
    print(f"training: losses {losses}")


def main():
    run("make", "-s", "build/rel/tests/vectors/logits")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        check_mxfp4(folder)
        print(run(sys.executable, TOOLS / "bpe.py", folder / "hf").strip())
        module = in_fp32()
        model = seeded_model(module)
        bf16_model.export(model, folder / "hf", folder / "hf" / "tokenizer.json")
        run(reference.NIBBLE, "pack", folder / "hf", folder / "demo.nib")
        assert (folder / "demo.nib").stat().st_size <= 12_000_000
        tokenizer = check_tokenizer(folder)
        check_logits(folder, model, tokenizer)
        (folder / "tokenizer.json").write_bytes((folder / "hf" / "tokenizer.json").read_bytes())
        run(sys.executable, TOOLS / "unpack.py", folder / "demo.nib", folder / "again")
        run(reference.NIBBLE, "pack", folder / "again", folder / "again.nib")
        assert (folder / "again.nib").read_bytes() == (folder / "demo.nib").read_bytes()
        check_training(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
