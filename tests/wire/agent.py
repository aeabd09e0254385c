"""An agent's trace of 20 requests, what each has in common with those before, and a check of how much is computed."""

import copy

PAGE, WINDOW = 64, 128
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Reads a file.", "parameters": {
    "type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}]
SYSTEM = "You mend programs. " + "Read before you write, and say what you found. " * 4
ASK = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3, "tools": TOOLS}


def text(n, what):
    return " ".join(f"{what} {i * i % 97}" for i in range(n))


def call(turn):
    """What an agent's client sends back of an answer: reasoning, a call, and the tool's output."""
    return [
        {"role": "assistant", "reasoning_content": text(2 + turn % 3, "hm"), "tool_calls": [
            {"id": f"c{turn}", "type": "function",
             "function": {"name": "look", "arguments": '{"path":"file%d.c"}' % turn}}]},
        {"role": "tool", "tool_call_id": f"c{turn}", "content": text(3 + turn * 7 % 11, "line")}]


def trace():
    """20 requests: three questions, each with a loop of calls and, but for the last, a final answer. Reasoning that came
    before a final answer is sent along, as clients do, and harmony drops it, keeps it in a loop, and drops it again."""
    messages, requests = [{"role": "system", "content": SYSTEM}], []
    for question, calls in enumerate((6, 7, 4)):
        messages.append({"role": "user", "content": text(4, f"Question {question}")})
        requests.append(copy.deepcopy(messages))
        for _ in range(calls):
            messages += call(len(requests))
            requests.append(copy.deepcopy(messages))
        messages.append({"role": "assistant", "reasoning_content": text(3, "So"), "content": text(3, "Done")})
    return requests


def render(messages):
    """The tokens behind system and developer message; this model's vocabulary is bytes."""
    parts = []
    for m in messages[1:]:
        if m["role"] == "user":
            parts.append(("", ["<start>", *"user", "<message>", *m["content"], "<end>"]))
        elif m["role"] == "tool":
            parts.append(("", ["<start>", *"functions.look to=assistant", "<channel>", *"commentary", "<message>",
                               *m["content"], "<end>"]))
        else:
            parts.append(("analysis", ["<start>", *"assistant", "<channel>", *"analysis", "<message>",
                                       *m["reasoning_content"], "<end>"]))
            if "content" in m:
                parts.append(("final", ["<start>", *"assistant", "<channel>", *"final", "<message>", *m["content"],
                                        "<end>"]))
            for c in m.get("tool_calls", []):
                parts.append(("call", ["<start>", *"assistant to=functions.look", "<channel>", *"commentary ",
                                       "<constrain>", *"json", "<message>", *c["function"]["arguments"], "<call>"]))
    kinds = [k for k, _ in parts]
    last = [k for k in kinds if k][-1:]
    first_final = kinds.index("final") if last == ["final"] else 0
    tokens = [t for i, (k, ts) in enumerate(parts) if k != "analysis" or i >= first_final for t in ts]
    return [*tokens, "<start>", *"assistant"]


def common(a, b):
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def ask(nibbled, messages, **more):
    answer = nibbled.post("/v1/chat/completions", {"messages": messages, **ASK, **more})
    assert answer.status == 200, answer.body
    return answer.json


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def check_trace(warm, cold, requests):
    """Prompt tokens of all requests, and of them those that were computed."""
    seen, preamble, total, total_fed, bare = [], None, 0, 0, 0
    for messages in requests:
        before = warm.metrics()["rows_prompt_total"]
        a, b = ask(warm, messages), ask(cold, messages)
        assert a["choices"] == b["choices"]  # text, reasoning, calls, log-probabilities: bit for bit
        prompt, rendered = a["usage"]["prompt_tokens"], render(messages)
        preamble = preamble or prompt - len(rendered)
        assert prompt == preamble + len(rendered) and cached(b) == 0
        new = prompt - max([preamble + common(rendered, s) for s in seen], default=0)
        fed = prompt - cached(a)
        assert warm.wait_metric("rows_prompt_total", before + fed)
        print(f"prompt {prompt:5d}  new {new:4d}  computed {fed:4d}")
        if seen:
            assert new <= fed <= new + WINDOW + PAGE
            assert fed <= new + 2 * PAGE  # what is left of a page, and a message's header before the prompts part
            bare += new
        seen.append(rendered)
        total += prompt
        total_fed += fed
    print(f"{total} prompt tokens, {total_fed} computed; without the first {bare} new")
    return total, total_fed
