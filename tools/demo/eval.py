#!/usr/bin/env python3
"""Held-out evaluation of the demo model: exact match of the last message (final text or call), and perplexity.

    eval.py daemon IMAGE [--device gpu] [--kv fp8] [--count N]  through nibbled's API, greedy
    eval.py transformers FOLDER [--count N]               through Hugging Face transformers, fp32, greedy
    eval.py formats FOLDER [--latent FOLDER] [--count N]  dense matrices in other formats: both, and the error of each
    eval.py kv IMAGE [--device gpu] [--count N]           keys and values in FP8 beside bf16: exact match, and on the CPU row
                                                          amx (or --row) perplexity and KL divergence

FOLDER is a checkpoint that train.py exported. The formats are those of core/mx*.c, put through and back to bf16: every
matrix outside the experts, also the router and the embedding, which an image always has in bf16. With --latent FOLDER (a
checkpoint of train.py), `bf16 experts` is measured too.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import subprocess
import sys

import api
import data


def questions(count):
    return data.held_out_questions(count)


def wanted(c):
    return json.dumps(["call", *c.call]) if c.call else json.dumps(["final", c.final])


def report(name, asked, right, extra=None):
    by = {}
    for c, good in zip(asked, right):
        n = by.setdefault(c.category, [0, 0])
        n[0] += good
        n[1] += 1
    print(f"{name}: " + ", ".join(f"{k} {a}/{b}" for k, (a, b) in by.items()))
    print(f"{name}: exact match {sum(right)}/{len(right)} = {sum(right) / len(right):.4f}{extra or ''}", flush=True)


def ask_daemon(image, asked, device, folder, show=8, slots=16, kv="bf16"):
    """One greedy answer a question, `slots` at a time. A daemon for each current date."""
    right, tokens = [False] * len(asked), 0

    def one(path, c):
        answer = api.post(path, "/v1/chat/completions", {**c.request, "temperature": 0, "max_tokens": 400})
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        got = (json.dumps(["call", calls[0]["function"]["name"], calls[0]["function"]["arguments"]]) if len(calls) == 1
               else json.dumps(["final", message["content"]]))
        return got, answer["usage"]["completion_tokens"]

    for date in sorted({c.date for c in asked}):
        with api.Daemon(folder, image, date, device, slots, kv) as daemon, concurrent.futures.ThreadPoolExecutor(slots) as pool:
            mine = [i for i, c in enumerate(asked) if c.date == date]
            for i, (got, used) in zip(mine, pool.map(lambda i: one(daemon.socket, asked[i]), mine)):
                right[i] = got == wanted(asked[i])
                tokens += used
                if not right[i] and show > 0:
                    show -= 1
                    question = asked[i].request["messages"][-1].get("content")
                    print(f"WRONG {asked[i].category} {question!r} wanted {wanted(asked[i])} got {got}"[:400])
    return right, tokens


# --- transformers ---


def load_model(folder):
    import torch
    from transformers import GptOssForCausalLM, Mxfp4Config

    return GptOssForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True)).eval()


def load_tokenizer(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))


def generate(model, tokenizer, c):
    """The greedy answer to one question, as text."""
    import torch

    ids = torch.tensor([tokenizer.encode(data.prompt_text(c), add_special_tokens=False).ids])
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=300, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=False)


def one_pass(model, tokenizer, asked, tokens_max=6144):
    """Whether every token of each right answer is the likeliest (greedy decoding then writes just that), and perplexity."""
    import torch

    texts = [data.answer_text(c) for c in asked]
    prompts = [len(tokenizer.encode(data.prompt_text(c), add_special_tokens=False).ids) for c in asked]
    rows = [tokenizer.encode(data.prompt_text(c) + t, add_special_tokens=False).ids for c, t in zip(asked, texts)]
    order = sorted(range(len(asked)), key=lambda i: len(rows[i]))
    right, loss, count = [False] * len(asked), 0.0, 0
    while order:
        longest = len(rows[order[-1]])
        mine = [order.pop() for _ in range(min(len(order), max(1, tokens_max // longest)))]
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in mine])
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        for i, row in zip(mine, logits):
            said, wanted = row[prompts[i] - 1 : len(rows[i]) - 1], torch.tensor(rows[i][prompts[i] :])
            right[i] = bool((said.argmax(-1) == wanted).all())
            loss += torch.nn.functional.cross_entropy(said.double(), wanted, reduction="sum").item()
            count += len(wanted)
    return right, math.exp(loss / count), count


def ask_transformers(model, tokenizer, asked):
    """Exact match and perplexity. Token by token only where one pass over the right answer leaves it open."""
    right, value, count = one_pass(model, tokenizer, asked)
    last = lambda text: text.split("<|start|>assistant")[-1]
    for i in [i for i, good in enumerate(right) if not good]:
        right[i] = last(generate(model, tokenizer, asked[i])) == last(data.answer_text(asked[i]))
    return right, value, count


# --- weight formats ---


def dense_names(state):
    """Matrices outside the experts: attention, router, embedding, head."""
    return [k for k, v in state.items() if v.ndim == 2 and not k.endswith("_bias") and "experts" not in k]


def with_format(folder, name, formats, work):
    """A checkpoint folder whose dense matrices went through a format; also the largest errors of one (error_of)."""
    from safetensors.torch import load_file, save_file
    import torch

    source, made = pathlib.Path(folder), pathlib.Path(work) / name
    made.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        (made / file).write_bytes((source / file).read_bytes())
    state, errors = load_file(source / "model.safetensors"), []
    for k in dense_names(state) if name != "bf16" else []:
        x = state[k].float().numpy()
        y = formats[name](x)
        errors.append(error_of(x, y))
        state[k] = torch.from_numpy(y).to(torch.bfloat16)
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    return made, max((e[0] for e in errors), default=0.0), max((e[1] for e in errors), default=0.0)


def error_of(exact, rounded):
    """Squared error, relative to the squares of all weights and a weight."""
    square = ((exact - rounded) ** 2).sum()
    return float(square / (exact**2).sum()), float(square / exact.size)


def bf16_experts(model, latent):
    """Puts the experts as they were before MXFP4 (in bf16) into a loaded model. Returns the worst errors that MXFP4 had."""
    import torch

    state, errors = {}, []
    for file in sorted(pathlib.Path(latent).glob("checkpoint-*.pt")):
        state.update(torch.load(file, map_location="cpu"))
    for i, layer in enumerate(model.model.layers):
        up = state[f"layers.{i}.up_w"].float().permute(1, 3, 2, 0)  # [2, E, I, H] to [E, H, I, 2]: gate, up in turn
        down = state[f"layers.{i}.down_w"].float().transpose(1, 2)
        for held, exact in ((layer.mlp.experts.gate_up_proj, up.reshape(up.shape[0], up.shape[1], -1)),
                            (layer.mlp.experts.down_proj, down)):
            errors.append(error_of(exact.numpy(), held.detach().numpy()))
            held.data = exact.contiguous()
    return max(e[0] for e in errors), max(e[1] for e in errors)


def run_formats(o, asked):
    """Exact match through nibbled, perplexity through transformers on every eighth conversation. Experts in bf16 do not fit
    an image: both through transformers."""
    import formats as formats_module

    formats, tokenizer, some = formats_module.load(), load_tokenizer(o.path), asked[::8]
    for name in ("bf16", *formats):
        folder, relative, mean = with_format(o.path, name, formats, o.work)
        image = pathlib.Path(o.work) / f"{name}.nib"
        image.unlink(missing_ok=True)
        subprocess.run([str(api.BUILD / "nibble"), "pack", str(folder), str(image)], check=True, stdout=subprocess.DEVNULL)
        right, _ = ask_daemon(image, asked, o.device, pathlib.Path(o.work) / "d", show=0, slots=o.slots)
        _, value, count = one_pass(load_model(folder), tokenizer, some)
        report(f"experts mxfp4, dense {name}", asked, right,
               f", perplexity {value:.5f} over {count} tokens, worst matrix: squared error {relative:.2e} of its own, "
               f"{mean:.2e} a weight")
    if o.latent:
        model = load_model(o.path)
        relative, mean = bf16_experts(model, o.latent)
        _, value, count = one_pass(model, tokenizer, some)
        right, _, _ = ask_transformers(model, tokenizer, asked)
        report("experts bf16, dense bf16", asked, right,
               f", perplexity {value:.5f} over {count} tokens, worst matrix that MXFP4 made: squared error {relative:.2e} of its "
               f"own, {mean:.2e} a weight")


# --- keys and values ---


def log_probabilities(o, row, kv):
    """What tests/vectors/logits says of each position of a sequence, [tokens][vocab]."""
    import numpy as np

    ids, out = pathlib.Path(o.work) / "ids", pathlib.Path(o.work) / "logits"
    np.array(row, np.uint32).tofile(ids)
    subprocess.run([str(api.BUILD / "tests" / "vectors" / "logits"), o.path, str(ids), str(out), o.row, "1", "0",
                    str(len(os.sched_getaffinity(0))), kv], check=True, stdout=subprocess.DEVNULL)
    said = np.fromfile(out, np.float32).reshape(len(row), -1).astype(np.float64)
    said -= said.max(axis=1, keepdims=True)
    return said - np.log(np.exp(said).sum(axis=1, keepdims=True))


def run_kv(o, asked):
    """Exact match of all through nibbled; then every eighth conversation with its right answer, position by position."""
    import numpy as np

    tokenizer, loss, work = load_tokenizer("etc/demo"), {"bf16": [], "fp8": []}, pathlib.Path(o.work)
    parts = {"questions": ([], []), "answers": ([], [])}
    work.mkdir(parents=True, exist_ok=True)
    for c in asked[::8]:
        prompt = tokenizer.encode(data.prompt_text(c), add_special_tokens=False).ids
        row = tokenizer.encode(data.prompt_text(c) + data.answer_text(c), add_special_tokens=False).ids
        said = {kv: log_probabilities(o, row, kv) for kv in loss}
        for kv, p in said.items():
            loss[kv] += [-p[i - 1, row[i]] for i in range(len(prompt), len(row))]
        far = (np.exp(said["bf16"]) * (said["bf16"] - said["fp8"])).sum(axis=1)
        same = said["bf16"].argmax(axis=1) == said["fp8"].argmax(axis=1)
        for (kl, top), cut in zip(parts.values(), (slice(0, len(prompt) - 1), slice(len(prompt) - 1, len(row) - 1))):
            kl += list(far[cut])
            top += list(same[cut])
    for part, (kl, top) in parts.items():
        print(f"row {o.row}, fp8 from bf16, {part}: mean KL {np.mean(kl):.2e}, median {np.median(kl):.2e}, largest "
              f"{max(kl):.2e}, largest logit the same {sum(top)}/{len(top)}", flush=True)
    for kv, nats in loss.items():
        right, _ = ask_daemon(o.path, asked, o.device, work / "d", slots=o.slots, kv=kv)
        report(f"keys and values {kv}", asked, right, f", perplexity {math.exp(np.mean(nats)):.5f} over {len(nats)} tokens")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["daemon", "transformers", "formats", "kv"])
    p.add_argument("path")
    p.add_argument("--count", type=int, default=2250)
    p.add_argument("--device", default="cpu")
    p.add_argument("--slots", type=int, default=16)
    p.add_argument("--work", default="/tmp/nibbled-demo-eval")
    p.add_argument("--latent")
    p.add_argument("--row", default="amx")
    p.add_argument("--kv", default="bf16", help="keys and values of `daemon`")
    o = p.parse_args()
    asked = questions(o.count)
    if o.what == "daemon":
        right, tokens = ask_daemon(o.path, asked, o.device, pathlib.Path(o.work) / "d", slots=o.slots, kv=o.kv)
        report(f"nibbled on {o.device}, keys and values {o.kv}", asked, right, f", {tokens} tokens written")
    elif o.what == "transformers":
        right, value, count = ask_transformers(load_model(o.path), load_tokenizer(o.path), asked)
        report("transformers", asked, right, f", perplexity {value:.5f} over {count} tokens")
    elif o.what == "kv":
        run_kv(o, asked)
    else:
        run_formats(o, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
