"""The OpenAI routes, over the socket, as curl and the openai client see them."""

import json
import subprocess

import httpx2
import openai
import pytest

import daemon as d


def client(daemon):
    transport = httpx2.HTTPTransport(uds=str(daemon.socket))
    return openai.OpenAI(base_url="http://nibbled/v1", api_key="none", max_retries=0,
                         http_client=httpx2.Client(transport=transport, timeout=d.HANG_S))


def text_of(events):
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])


def test_curl(nibbled, endless):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "logit_bias": endless}
    out = subprocess.run(
        ["curl", "-sS", "--unix-socket", nibbled.socket, "http://x/v1/chat/completions",
         "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        check=True, capture_output=True).stdout
    assert json.loads(out)["usage"]["completion_tokens"] == 3


def test_models_has_real_limits(nibbled):
    model = nibbled.get("/v1/models").json["data"][0]
    assert model["id"] == "nano" and model["context_length"] == 4096
    assert model["max_output_tokens"] == 4095 and model["slots"] == 4 and model["queue"] == 8
    assert model["text_ids"] == 256 < model["vocab"]


def test_health(nibbled):
    health = nibbled.get("/health")
    assert health.status == 200 and health.json["status"] == "ready"


def test_chat(nibbled):
    r = nibbled.chat(max_tokens=6).json
    assert r["object"] == "chat.completion" and r["model"] == "nano"
    choice = r["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("length", "stop", "tool_calls")
    usage = r["usage"]
    assert usage["completion_tokens"] <= 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] <= usage["completion_tokens"]


def test_stream_is_the_whole_answer(nibbled, endless):
    ask = dict(seed=7, max_tokens=40, logit_bias=endless)
    whole = nibbled.chat(**ask).json["choices"][0]
    events = nibbled.chat(stream=True, stream_options={"include_usage": True}, **ask).events
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == whole["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["finish_reason"] == "length"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 40
    assert all(e["usage"] is None for e in events[:-1])
    assert all(e["id"] == events[0]["id"] for e in events)


@pytest.mark.parametrize("chat", [False, True])
def test_usage_in_every_event(nibbled, endless, chat):
    ask = dict(seed=7, max_tokens=40, logit_bias=endless, stream=True)
    post = nibbled.chat if chat else nibbled.complete
    plain = post(stream_options={"include_usage": True}, **ask).events
    events = post(stream_options={"include_usage": True, "continuous_usage_stats": True}, **ask).events
    assert [e["choices"] for e in events] == [e["choices"] for e in plain]
    assert events[-1]["usage"] == plain[-1]["usage"]
    tokens = [e["usage"]["completion_tokens"] for e in events]
    assert tokens == sorted(tokens) and tokens[0] >= 1 and tokens[-1] == 40
    assert chat or len(set(tokens)) > 2  # this chat's header never ends, so that its text comes at the end
    assert {e["usage"]["prompt_tokens"] for e in events} == {plain[-1]["usage"]["prompt_tokens"]}


def test_no_usage_unless_asked(nibbled):
    assert all("usage" not in e for e in nibbled.chat(stream=True).events)


def test_seed_gives_the_same_bytes(nibbled):
    a = nibbled.complete(seed=11, max_tokens=64).json["choices"][0]
    b = nibbled.complete(seed=11, max_tokens=64).json["choices"][0]
    c = nibbled.complete(seed=12, max_tokens=64).json["choices"][0]
    assert a == b
    assert a["text"] != c["text"]


def test_without_seed_answers_differ(nibbled, endless):
    texts = {nibbled.complete(max_tokens=32, logit_bias=endless).json["choices"][0]["text"]
             for _ in range(4)}
    assert len(texts) == 4


def test_temperature_zero_is_greedy(nibbled):
    answers = [nibbled.complete(max_tokens=32, seed=i, **how).json["choices"][0]["text"]
               for i, how in enumerate(({"temperature": 0}, {"temperature": 0}, {"top_k": 1},
                                        {"top_p": 0}))]
    assert len(set(answers)) == 1


def test_logit_bias_forces_a_token(nibbled):
    r = nibbled.complete(logit_bias={str(ord("x")): 100}, max_tokens=5)
    assert r.json["choices"][0]["text"] == "xxxxx"


@pytest.mark.parametrize("stream", [False, True])
def test_ignore_eos_goes_on_to_max_tokens(nibbled, special_ids, stream):
    bias = {str(special_ids["<|return|>"]): 100}

    def ask(**more):
        r = nibbled.complete(max_tokens=6, logit_bias=bias, stream=stream, **more,
                             **({"stream_options": {"include_usage": True}} if stream else {}))
        choices = [e["choices"][0] for e in r.events if e["choices"]] if stream else r.json["choices"]
        usage = r.events[-1]["usage"] if stream else r.json["usage"]
        return choices[-1]["finish_reason"], usage["completion_tokens"]

    assert ask() == ask(ignore_eos=False) == ("stop", 1)
    assert ask(ignore_eos=True) == ("length", 6)


def test_ignore_eos_is_not_for_chat(nibbled):
    r = nibbled.chat(ignore_eos=True)  # a turn's end is part of the conversation's form
    assert (r.status, r.error["code"]) == (400, "unknown_parameter")


def test_prompt_as_token_ids(nibbled):
    ids = nibbled.post("/tokenize", {"text": "hello"}).json["tokens"]
    a = nibbled.complete("hello", seed=5).json
    b = nibbled.complete(ids, seed=5).json
    c = nibbled.complete(["hello"], seed=5).json
    assert a["choices"] == b["choices"] == c["choices"]
    assert a["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_spans_tokens(nibbled, stream):
    bias = {str(ord("a")): 100}
    r = nibbled.complete(logit_bias=bias, max_tokens=50, stop=["zz", "aaa"], stream=stream)
    if stream:
        text = "".join(e["choices"][0]["text"] for e in r.events)
        reason = r.events[-1]["choices"][0]["finish_reason"]
    else:
        text, reason = r.json["choices"][0]["text"], r.json["choices"][0]["finish_reason"]
    assert (text, reason) == ("", "stop")


def test_stop_string_not_found_is_given_back(nibbled):
    r = nibbled.complete(logit_bias={str(ord("a")): 100}, max_tokens=5, stop="aaaaaaaaX").json
    assert r["choices"][0]["text"] == "aaaaa"
    assert r["choices"][0]["finish_reason"] == "length"


def test_completion_logprobs(nibbled, endless):
    r = nibbled.complete(logprobs=3, temperature=0, max_tokens=10, logit_bias=endless).json
    l = r["choices"][0]["logprobs"]
    assert [len(l[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [10] * 4
    for name, value, top in zip(l["tokens"], l["token_logprobs"], l["top_logprobs"]):
        assert len(top) == 3 and value <= 0
        assert top[name] == max(top.values()) == value  # greedy
    assert l["text_offset"][0] == 0 and l["text_offset"] == sorted(l["text_offset"])


def test_chat_logprobs(nibbled, special_ids, endless):
    # a header that never ends becomes content only at the end of the answer; with <|message|> made
    # likely, content begins early
    bias = {**endless, str(special_ids["<|message|>"]): 10}
    r = nibbled.chat(logprobs=True, top_logprobs=2, max_tokens=30, seed=2, logit_bias=bias).json
    content = r["choices"][0]["logprobs"]["content"]
    assert len(content) > 0
    for entry in content:
        assert len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0
        assert entry["bytes"] is not None and entry["token"] not in special_ids
    assert nibbled.chat(max_tokens=3).json["choices"][0]["logprobs"] is None


def test_logprobs_of_stream_and_whole_agree(nibbled, endless):
    ask = dict(logprobs=2, seed=3, max_tokens=12, logit_bias=endless)
    whole = nibbled.complete(**ask).json["choices"][0]["logprobs"]
    parts = [e["choices"][0]["logprobs"] for e in nibbled.complete(stream=True, **ask).events]
    joined = {k: sum((p[k] for p in parts if p), []) for k in whole}
    assert joined == whole


def test_penalties_change_the_answer(nibbled, endless):
    ask = dict(temperature=0, max_tokens=40, logit_bias=endless)
    base = nibbled.complete(**ask).json["choices"][0]["text"]
    for name, value in (("frequency_penalty", 2), ("presence_penalty", 2),
                        ("repetition_penalty", 5)):
        r = nibbled.complete(**ask, **{name: value})
        assert r.status == 200
        assert r.json["choices"][0]["text"] != base, name


def test_max_tokens_names(nibbled, endless):
    for name in ("max_tokens", "max_completion_tokens"):
        body = {"messages": [{"role": "user", "content": "x"}], name: 5, "logit_bias": endless}
        r = nibbled.post("/v1/chat/completions", body).json
        assert r["usage"]["completion_tokens"] == 5
        assert r["choices"][0]["finish_reason"] == "length"


TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Weather "},
                                 {"type": "text", "text": "in Rome?"}]},
    {"role": "assistant", "content": None, "reasoning_content": "Ask the tool.",
     "tool_calls": [{"id": "call_1", "type": "function",
                     "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]


def test_tools_and_history(nibbled):
    def prompt_tokens(**more):
        r = nibbled.post("/v1/chat/completions",
                         {"messages": HISTORY, "tools": TOOLS, "max_tokens": 4, **more})
        assert r.status == 200, r.body
        return r.json["usage"]["prompt_tokens"]

    with_tools = prompt_tokens(tool_choice="auto")
    assert prompt_tokens(tool_choice="none") < with_tools
    other = [{("reasoning" if k == "reasoning_content" else k): v for k, v in m.items()}
             for m in HISTORY]
    assert prompt_tokens(messages=other) == with_tools
    assert prompt_tokens(messages=HISTORY[:2]) < with_tools


def test_reasoning_effort_changes_the_prompt(nibbled):
    n = {e: nibbled.chat(reasoning_effort=e).json["usage"]["prompt_tokens"]
         for e in ("low", "medium", "high")}
    assert n["medium"] == n["low"] + 3 and n["high"] == n["low"] + 1  # bytes are tokens here


def test_ignored_fields(nibbled):
    r = nibbled.chat(user="u", metadata={"a": "b"}, store=False, service_tier="auto",
                     parallel_tool_calls=True, stop=None, temperature=None, n=1,
                     response_format={"type": "text"})
    assert r.status == 200


def test_tokenize_and_back(nibbled):
    text = "Hello, wörld! \u65e5\u672c <|start|>"
    r = nibbled.post("/tokenize", {"text": text}).json
    assert r["count"] == len(r["tokens"]) == len(text.encode())
    assert nibbled.post("/detokenize", {"tokens": r["tokens"]}).json["text"] == text


@pytest.mark.parametrize("where", ["user", "system", "assistant", "tool", "tool_description",
                                   "arguments", "part", "reasoning"])
def test_special_tokens_cannot_be_injected(nibbled, special_ids, where):
    """The text of a special token, in any field, is as many tokens as any text of its length."""

    def count(text):
        def here(name, other):
            return text if where == name else other

        messages = [{"role": "system", "content": here("system", "s")},
                    {"role": "user", "content": here("user", "u")},
                    {"role": "user", "content": [{"type": "text", "text": here("part", "p")}]},
                    {"role": "assistant", "content": here("assistant", "a"),
                     "reasoning": here("reasoning", "r"),
                     "tool_calls": [{"id": "1", "type": "function", "function": {
                         "name": "f", "arguments": here("arguments", "{}")}}]},
                    {"role": "tool", "tool_call_id": "1", "content": here("tool", "t")}]
        tools = [{"type": "function", "function": {
            "name": "f", "description": here("tool_description", "d")}}]
        r = nibbled.post("/v1/chat/completions",
                         {"messages": messages, "tools": tools, "max_tokens": 1})
        assert r.status == 200, r.body
        return r.json["usage"]["prompt_tokens"]

    # every byte is one token in this vocabulary: a special token would make the prompt shorter
    every = "".join(special_ids)
    assert count(every) == count("x") - 1 + len(every)


def test_special_names_are_refused_as_tool_names(nibbled):
    tools = [{"type": "function", "function": {"name": "<|start|>"}}]
    assert nibbled.chat(tools=tools).error["param"] == "tools"
    r = nibbled.post("/v1/chat/completions", {"messages": [{"role": "<|start|>system", "content": "x"}]})
    assert r.status == 400


def test_openai_client_chat(nibbled):
    r = client(nibbled).chat.completions.create(
        model="nano", messages=HISTORY, tools=TOOLS, max_tokens=6, seed=1)
    assert r.usage.completion_tokens <= 6 and r.choices[0].message.role == "assistant"


def test_openai_client_stream(nibbled, endless):
    ask = dict(model="nano", messages=[{"role": "user", "content": "hi"}], max_tokens=20, seed=1,
               logit_bias=endless)
    whole = client(nibbled).chat.completions.create(**ask)
    chunks = list(client(nibbled).chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **ask))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_openai_client_completions_models_errors(nibbled):
    c = client(nibbled)
    assert [m.id for m in c.models.list()] == ["nano"]
    r = c.completions.create(model="nano", prompt="x", max_tokens=3, logprobs=2)
    assert len(r.choices[0].logprobs.tokens) <= 3
    with pytest.raises(openai.BadRequestError) as e:
        c.chat.completions.create(model="nano", messages=[{"role": "user", "content": "x"}],
                                  temperature=3)
    assert e.value.param == "temperature" and "from 0 to 2" in str(e.value)
    with pytest.raises(openai.NotFoundError):
        c.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
