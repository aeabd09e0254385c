#!/usr/bin/env python3
"""Trains the demo model on one GPU, in legs that may each be cut short: the next one goes on from the checkpoint.

    train.py --tokenizer tokenizer.json --out FOLDER --seconds 480 [--steps N] [--resume FOLDER] [--schedule 0 1]

A leg covers the part `--schedule` of the learning rate's course: 0 1 is the whole of it. Without --steps the number of
steps is what fits into --seconds, from the measured pace. A checkpoint holds the weights in bf16; the optimizer's moments
are not kept, and a resumed leg warms up again. Data is made by worker processes while the GPU works; batches hold
conversations of similar length from position 0, each padded to the length of its bucket. The loss is on what the
assistant writes in answer to the last message: analysis, calls, finals and their headers.
"""
import argparse
import json
import math
import multiprocessing
import os
import pathlib
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import torch.nn.functional as F

import data
from model import Config, Model, export

BUCKETS = [96, 128, 144, 192, 256, 288, 384, 512]  # all divide 36,864
CHUNK = 256  # conversations tokenised at once
RETURN, CALL = 4, 14  # distances of the stop tokens


def load_tokenizer(path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def make_batches(seed, path, tokens, queue):
    """A worker: puts (tokens [B, L], first answer position [B], length [B]) for ever."""
    tokenizer, made = load_tokenizer(path), data.stream(seed)
    shelves = {l: [] for l in BUCKETS}
    while True:
        chunk = [next(made) for _ in range(CHUNK)]
        prompts = [data.prompt_text(c) for c in chunk]
        texts = [p + data.answer_text(c) for p, c in zip(prompts, chunk)]
        starts = [len(e.ids) for e in tokenizer.encode_batch_fast(prompts, add_special_tokens=False)]
        for start, e in zip(starts, tokenizer.encode_batch_fast(texts, add_special_tokens=False)):
            fitting = [l for l in BUCKETS if len(e.ids) <= l]
            if not fitting:
                continue
            l = fitting[0]
            shelves[l].append((e.ids, start))
            if len(shelves[l]) * l == tokens:
                batch = np.zeros((len(shelves[l]), l), np.int16)
                for row, (ids, _) in zip(batch, shelves[l]):
                    row[: len(ids)] = ids
                queue.put((batch, np.array([s for _, s in shelves[l]], np.int32),
                           np.array([len(ids) for ids, _ in shelves[l]], np.int32)))
                shelves[l] = []


def loss_of(model, batch, starts, lengths, device, fast):
    tokens = torch.from_numpy(batch).to(device, non_blocking=True).long()
    first, end = (torch.from_numpy(t).to(device, non_blocking=True)[:, None] for t in (starts, lengths))
    at = torch.arange(tokens.shape[1], device=device)[None, :]
    targets = torch.where((at >= first) & (at < end), tokens, -100)
    targets = F.pad(targets[:, 1:], (0, 1), value=-100).reshape(-1)
    state, balance = model(tokens, fast)
    return F.cross_entropy(model.logits(state).float(), targets), balance


@torch.no_grad()
def answer(model, prompts, count_max, device):
    """Greedy answers to prompts of token ids; no cache: every step runs the whole rows that are not done."""
    stops = {model.c.special_base + RETURN, model.c.special_base + CALL}
    rows, answers = list(range(len(prompts))), [[] for _ in prompts]
    for _ in range(count_max):
        longest = max(len(prompts[i]) + len(answers[i]) for i in rows)
        tokens = torch.zeros(len(rows), -(-longest // 32) * 32, dtype=torch.long)
        for row, i in zip(tokens, rows):
            row[: len(prompts[i]) + len(answers[i])] = torch.tensor(prompts[i] + answers[i])
        last = torch.tensor([len(prompts[i]) + len(answers[i]) - 1 for i in rows])
        state, _ = model(tokens.to(device))
        state = state.reshape(len(rows), tokens.shape[1], -1)[torch.arange(len(rows)), last.to(device)]
        for i, token in zip(rows, model.logits(state).argmax(-1).tolist()):
            answers[i].append(token)
        rows = [i for i in rows if answers[i][-1] not in stops]
        if not rows:
            break
    return answers


def exact_match(model, tokenizer, count, device, show=6):
    """Share of held-out questions whose last message (final text, or call) is the right one, by category."""
    asked = data.held_out_questions(count)
    right, total, shown = {}, {}, 0
    for at in range(0, len(asked), 256):
        part = asked[at : at + 256]
        prompts = [tokenizer.encode(data.prompt_text(c), add_special_tokens=False).ids for c in part]
        for c, ids in zip(part, answer(model, prompts, 260, device)):
            text = tokenizer.decode(ids, skip_special_tokens=False)
            wanted = data.answer_text(c)
            good = text.split("<|start|>assistant")[-1] == wanted.split("<|start|>assistant")[-1]
            right[c.category] = right.get(c.category, 0) + good
            total[c.category] = total.get(c.category, 0) + 1
            if not good and shown < show:
                shown += 1
                print(f"WRONG {c.category} | {c.request['messages'][-1].get('content')} | wanted {wanted} | got {text}"[:700])
    print("exact match: " + ", ".join(f"{k} {right[k]}/{total[k]}" for k in total))
    print(f"exact match in all: {sum(right.values())}/{sum(total.values())} = {sum(right.values()) / sum(total.values()):.4f}")


PARTS = 2


def save(model, folder, done):
    """The weights in bf16, in PARTS files, and how far the schedule has come."""
    names = list(model.state_dict())
    state = {k: v.to(torch.bfloat16).cpu() for k, v in model.state_dict().items()}
    for i in range(PARTS):
        torch.save({k: state[k] for k in names[i::PARTS]}, folder / f"checkpoint-{i}.pt")
    (folder / "training.json").write_text(json.dumps(done, indent=1) + "\n")


def resume(model, folder):
    state = {}
    for i in range(PARTS):
        state.update(torch.load(pathlib.Path(folder) / f"checkpoint-{i}.pt", map_location="cpu"))
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return json.loads((pathlib.Path(folder) / "training.json").read_text())


def rate(part):
    """Of the peak, at a part 0..1 of the schedule: level, then down along a cosine."""
    return 1.0 if part < 0.2 else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (part - 0.2) / 0.8))


def options():
    p = argparse.ArgumentParser()
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--seconds", type=float, required=True, help="of this leg, from start to saved")
    p.add_argument("--eval-seconds", type=float, default=25, help="kept back for the questions at the end")
    p.add_argument("--steps", type=int, default=0)
    p.add_argument("--resume")
    p.add_argument("--schedule", type=float, nargs=2, default=[0.0, 1.0])
    p.add_argument("--tokens", type=int, default=73728, help="of a batch, padding included")
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=150)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=12)
    p.add_argument("--questions", type=int, default=208)
    p.add_argument("--layers", type=int, default=Config.layers)
    p.add_argument("--eager", action="store_true")
    p.add_argument("--cpu", action="store_true")
    return p.parse_args()


def start_workers(o, leg):
    queue, workers = multiprocessing.Queue(maxsize=48), []
    for i in range(o.workers):
        seed = (o.seed * 1000 + leg) * 1000 + i
        workers.append(multiprocessing.Process(target=make_batches, args=(seed, o.tokenizer, o.tokens, queue), daemon=True))
        workers[-1].start()
    return queue, workers


def make_optimizer(model, o, device):
    wide = [p for p in model.parameters() if p.ndim >= 2 and p.shape[-1] > 8]
    thin = [p for p in model.parameters() if not (p.ndim >= 2 and p.shape[-1] > 8)]
    groups = [{"params": wide, "weight_decay": 0.05}, {"params": thin, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=o.rate, betas=(0.9, 0.98), eps=1e-9, fused=device == "cuda")


def try_compile(model, o, queue, device, optimizer):
    """One pass through the compiled functions; eager when this machine cannot."""
    if o.eager or device != "cuda":
        return False
    try:
        begin = time.time()
        model.compile()
        for _ in range(3):
            loss, balance = loss_of(model, *queue.get(), device, True)
            (loss + 0.01 * balance).backward()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        print(f"compiled in {time.time() - begin:.1f} s", flush=True)
        return True
    except Exception as error:  # noqa: BLE001  no C compiler, say
        print(f"not compiled, eager: {type(error).__name__} {str(error)[:300]}", flush=True)
        optimizer.zero_grad(set_to_none=True)
        return False


def train(model, o, queue, device, began):
    """The steps of this leg. Returns how far the schedule came and the tokens seen."""
    optimizer = make_optimizer(model, o, device)
    fast = try_compile(model, o, queue, device, optimizer)
    steps, seen, waited, part = o.steps, 0, 0.0, o.schedule[0]
    logged, losses, begin = time.time(), [], time.time()
    deadline, pace_at, step = began + o.seconds - o.eval_seconds, 60 if device == "cuda" else 3, 0
    while not steps or step < steps:
        done = step / steps if steps else 0.0
        part = o.schedule[0] + (o.schedule[1] - o.schedule[0]) * done
        for group in optimizer.param_groups:
            group["lr"] = o.rate * rate(part) * min(1.0, (step + 1) / o.warmup)
        for _ in range(o.accumulate):
            asked = time.time()
            batch = queue.get()
            waited += time.time() - asked
            loss, balance = loss_of(model, *batch, device, fast)
            ((loss + 0.01 * balance) / o.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        seen += o.tokens * o.accumulate
        step += 1
        if step % pace_at == 0:
            mean = torch.stack(losses).mean().item()  # waits for the GPU
            now = time.time()
            pace = (now - logged) / pace_at
            if step == 2 * pace_at and not steps:
                steps = step + max(1, int((deadline - now) / pace * 0.97))
                print(f"{steps} steps fit")
            if step <= 2 * pace_at or step % (pace_at * max(1, (steps or 1) // pace_at // 20)) == 0:
                print(f"step {step} loss {mean:.4f} balance {float(balance.detach()):.3f} "
                      f"{o.tokens * o.accumulate / pace / 1e6:.3f} M tokens/s waited {waited:.1f} s at {now - began:.0f} s",
                      flush=True)
            logged, losses = now, []
            if now > deadline:
                print("the time of this leg is over before its schedule")
                break
    print(f"{step} steps, {seen / 1e6:.1f} M tokens with padding in {time.time() - begin:.1f} s, schedule at {part:.3f}",
          flush=True)
    return step, seen, part


def main():
    began, o = time.time(), options()
    folder = pathlib.Path(o.out)
    folder.mkdir(parents=True, exist_ok=True)
    device = "cpu" if o.cpu else "cuda"
    torch.manual_seed(o.seed)
    model = Model(Config(layers=o.layers))
    before = resume(model, o.resume) if o.resume else {"legs": []}
    queue, workers = start_workers(o, len(before["legs"]))
    model.to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {time.time() - began:.1f} s to here", flush=True)
    step, seen, part = train(model, o, queue, device, began)
    for worker in workers:
        worker.terminate()
    before["legs"].append({"steps": step, "tokens": seen, "seconds": round(time.time() - began), "part": part, "seed": o.seed})
    save(model, folder, before)
    export(model, folder, o.tokenizer)
    print(f"saved at {time.time() - began:.0f} s", flush=True)
    if o.questions:
        exact_match(model, load_tokenizer(o.tokenizer), o.questions, device)
    print(f"over at {time.time() - began:.0f} s: {json.dumps(before['legs'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
