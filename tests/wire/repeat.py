"""Requests whose answers repeat what came, and a comparison of two daemons, of which one guesses what comes next."""

import json

ON = {"lookup": {"draft_tokens": 15}}
FEW = {str(ord(c)): 60 for c in "abc"}  # a vocabulary of three bytes: what comes often came before


def difference(a, b):
    """Where two answers to one request part: text, tokens, or log-probabilities by how much."""
    told = [c.get("message", {}).get("content") or c.get("text") for c in (a, b)]
    probs = [c.get("logprobs") or {} for c in (a, b)]
    pairs = [[(t["token"], t["logprob"]) for t in p["content"]] if "content" in p else
             list(zip(p.get("tokens", []), p.get("token_logprobs", []))) for p in probs]
    at = next((i for i, (x, y) in enumerate(zip(*pairs)) if x != y), None)
    return f"{'same' if told[0] == told[1] else 'other'} text; first other token at {at}: " + (
        f"{pairs[0][at]}, {pairs[1][at]}" if at is not None else f"{told}")


def same(off, on, path, body):
    """Both daemons' answers to a request, which must be equal but for the ids of calls."""
    a, b = (n.post(path, body) for n in (off, on))
    assert a.status == b.status == 200, (a.body, b.body)
    choices = [json.loads(json.dumps(n.json["choices"])) for n in (a, b)]
    for choice in choices:
        for call in choice[0].get("message", {}).get("tool_calls") or []:
            call["id"] = ""
    assert choices[0] == choices[1], difference(choices[0][0], choices[1][0])
    assert a.json["usage"] == b.json["usage"]
    return choices[0][0]


def requests(endless):
    """Prompts that repeat themselves, and answers that do, greedy and sampled."""
    text = "to be or not to be, that is the question; to be or not to "
    told = {"max_tokens": 150, "logprobs": 3}
    # one letter again and again: the first guesses, made whatever they cost, come true
    yield {"prompt": "aaaa", "temperature": 0, "logit_bias": {**endless, "97": 99}, **told}
    for prompt in ("x", text, text * 5):
        yield {"prompt": prompt, "temperature": 0, "logit_bias": endless, **told}
        yield {"prompt": prompt, "temperature": 0.7, "seed": 3, "top_p": 0.9, "logit_bias": endless, **told}
        yield {"prompt": prompt, "temperature": 1, "seed": 9, "logit_bias": {**endless, **FEW}, **told}
        yield {"prompt": prompt, "temperature": 1, "seed": 9, "logit_bias": {**endless, **FEW}, "presence_penalty": 0.5,
               "frequency_penalty": 0.1, "repetition_penalty": 1.1, **told}
        yield {"prompt": prompt, "temperature": 1, "seed": 4, "logit_bias": {**endless, **FEW}, "stop": ["abca"], **told}
        yield {"prompt": prompt, "temperature": 0, "logit_bias": {**endless, **FEW}, "max_tokens": 2}


def check(off, on, endless):
    for body in requests(endless):
        same(off, on, "/v1/completions", body)
    m = on.check_ledger()
    assert 0 < m["draft_accepted_total"] <= m["draft_tokens_total"]
    plain = off.check_ledger()
    assert plain["draft_tokens_total"] == plain["draft_accepted_total"] == 0
    assert m["steps_total"] < plain["steps_total"]
