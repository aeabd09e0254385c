"""What the daemon refuses: each answer is in OpenAI's error shape and names numbers."""

import json
import random

import pytest

import daemon as d


def refused(r, status, code=None, param=None):
    assert r.status == status, r.body
    assert set(r.error) == {"message", "type", "param", "code"}
    assert r.error["message"]
    if code:
        assert r.error["code"] == code, r.error
    if param:
        assert r.error["param"] == param, r.error
    return r.error["message"]


def test_unknown_path(nibbled):
    for path in ("/", "/v1", "/v1/chat/completions/", "/v1/chat", "/health/../metrics", "/v1/embeddings"):
        refused(nibbled.get(path), 404, "not_found")


def test_method(nibbled):
    for method, path, allow in (("GET", "/v1/chat/completions", "POST"), ("POST", "/health", "GET"),
                                ("DELETE", "/v1/models", "GET"), ("PUT", "/tokenize", "POST")):
        r = nibbled.request(method, path)
        refused(r, 405, "method_not_allowed")
        assert r.headers["Allow"] == allow


def test_content_type_and_encoding(nibbled):
    body = '{"prompt":"x","max_tokens":1}'
    for type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        refused(nibbled.post("/v1/completions", body, **{"Content-Type": type}), 415)
    refused(nibbled.post("/v1/completions", body, **{"Content-Encoding": "gzip"}), 415)
    ok = {"Content-Type": "application/json; charset=utf-8"}
    assert nibbled.post("/v1/completions", body, **ok).status == 200


def test_body_too_large(nibbled):
    limit = 1 << 20
    r = nibbled.post("/v1/completions", json.dumps({"prompt": "x" * limit}))
    assert str(limit) in refused(r, 413, "request_too_large")
    # the same without a Content-Length
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    got = nibbled.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                      b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17 + b"0\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 413")


def test_body_of_the_largest_size(nibbled):
    body = json.dumps({"text": ""})
    body = json.dumps({"text": "x" * ((1 << 20) - len(body))})
    # as many tokens as bytes do not fit the response buffer: that is said, nothing breaks
    assert nibbled.post("/tokenize", body).status == 413
    assert nibbled.post("/tokenize", {"text": "x" * 200000}).json["count"] == 200000


@pytest.mark.parametrize("body", [
    "", "{", "nul", "[1,", '{"a":1,}', '{"messages":[}', "{'a':1}", '{"a":1} x', "\xff", '{"a":"\ud800"}',
    '{"prompt":"x","prompt":"y"}', '{"prompt":"x","seed":1e400}', '{"prompt":"x","seed":NaN}',
    '{"prompt":"x\\u0000"}' + "}", '{"prompt":"\x01"}', "\x00", '{"n":01}'])
def test_malformed_json(nibbled, body):
    r = nibbled.post("/v1/completions", body.encode("utf-8", "surrogatepass"))
    message = refused(r, 400, "invalid_json")
    assert "line 1" in message or "line 0" in message or "line -1" in message


def test_depth(nibbled):
    for n, status in ((31, 200), (32, 400), (100000, 400)):
        r = nibbled.post("/v1/completions", '{"prompt":"x","max_tokens":1,"metadata":%s1%s}' % ("[" * n, "]" * n))
        assert r.status == status, (n, r.body)
    assert "32" in r.error["message"]


def test_body_must_be_an_object(nibbled):
    for body in ("[]", "1", '"x"', "null"):
        assert nibbled.post("/v1/completions", body).status == 400


FIELDS = [(f, api) for f in d.fields() for api in ("chat", "completions")
          if f[api] and f["type"] in ("int", "real", "bool")]
CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
COMPLETION = {"prompt": "x", "max_tokens": 1}


@pytest.mark.parametrize("field,api", FIELDS, ids=lambda v: v["name"] if isinstance(v, dict) else v)
def test_range(nibbled, field, api):
    """Generated from the daemon's own table."""
    name, low, high = field["name"], field["min"], field["max"]
    path = "/v1/chat/completions" if api == "chat" else "/v1/completions"
    whole = {**(CHAT if api == "chat" else COMPLETION)}
    if name in ("max_tokens", "max_completion_tokens"):
        whole.pop("max_tokens")
        good, bad = [1, 2], [0, -1, high + 1]
    elif field["type"] == "bool":
        good = [False] + ([True] if high else [])
        bad = [] if high else [True]
    elif field["type"] == "int":
        good, bad = [low, high], [low - 1, high + 1, 2**63 - 1, -2**63]
        if high > 2**52:
            bad = [2**53, -2**53, 2**63 - 1]
    else:
        good = [low, high, (low + high) / 2]
        bad = [low - 0.001, high + 0.001, 1e308, -1e308]
    if name == "top_logprobs":
        whole["logprobs"] = True
    if field["type"] == "real":
        good.append(0 if low <= 0 else 1)

    def ask(value):
        return nibbled.post(path, {**whole, name: value})

    for value in [None] + good:
        r = ask(int(value) if field["type"] == "int" and value is not None else value)
        assert r.status == 200, (value, r.body)
    for value in bad:
        message = refused(ask(int(value) if field["type"] == "int" else value), 400, param=name)
        if field["type"] != "bool":
            assert "%.16g" % low in message and "%.16g" % high in message
    for wrong in ("1", [], {}, "true") + ((1.5,) if field["type"] == "int" else ()) \
            + ((1, 0) if field["type"] == "bool" else (True,)):
        refused(ask(wrong), 400, "invalid_type", name)
    for text in ("1e400", "-1e400", "NaN", "Infinity", "9" * 400):
        body = json.dumps({**whole, name: "@"}).replace('"@"', text)
        assert nibbled.post(path, body).status == 400, text


def test_unknown_field(nibbled):
    message = refused(nibbled.chat(chat_template="{{ x }}"), 400, "unknown_parameter", "chat_template")
    assert "chat_template" in message
    for name in ("functions", "function_call", "audio", "modalities", "é" * 40, "x" * 500, "\u0000"):
        assert nibbled.post("/v1/chat/completions", {**CHAT, name: 1}).status == 400


@pytest.mark.parametrize("change,param", [
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": "text"}, "response_format"),
    ({"n": 2}, "n"),
    ({"stop": ["a"] * 5}, "stop"), ({"stop": ""}, "stop"), ({"stop": "x" * 257}, "stop"),
    ({"stop": [1]}, "stop"), ({"stop": {}}, "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias"), ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"288": 1}}, "logit_bias"), ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"), ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {str(i % 288) + "": 1 for i in range(288)} | {"0" + str(i): 1 for i in range(20)}},
     "logit_bias"),
    ({"reasoning_effort": "max"}, "reasoning_effort"), ({"reasoning_effort": 1}, "reasoning_effort"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": 1}}, "stream_options"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"messages": []}, "messages"), ({"messages": "x"}, "messages"), ({"messages": [1]}, "messages"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages"),
    ({"messages": [{"role": "tool", "tool_call_id": "none", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a b", "arguments": ""}}]}]},
     "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]},
     "messages"),
    ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
    ({"tools": "x"}, "tools"), ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "x", "strict": True}}]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    ({"model": 1}, "model"),
])
def test_values(nibbled, change, param):
    refused(nibbled.post("/v1/chat/completions", {**CHAT, **change}), 400, param=param)


@pytest.mark.parametrize("prompt", [None, 1, {}, [], "", [[1], [2]], ["a", "b"], [288], [-1], [1.5],
                                    [1 << 40], [1, "a"]])
def test_prompts(nibbled, prompt):
    refused(nibbled.post("/v1/completions", {"prompt": prompt}), 400, param="prompt")


def test_context_length_has_both_numbers(nibbled):
    message = refused(nibbled.complete("x" * 4090, max_tokens=100), 400, "context_length_exceeded")
    assert "4090" in message and "4096" in message and "100" in message
    message = refused(nibbled.complete("x" * 5000), 400, "context_length_exceeded")
    assert "4096" in message
    assert nibbled.complete("x" * 4095, max_tokens=1).status == 200
    refused(nibbled.chat("x" * 5000), 400, "context_length_exceeded", "messages")


def test_deep_schema_is_not_a_long_prompt(nibbled):
    schema = {"type": "object"}
    for _ in range(12):
        schema = {"type": "object", "properties": {"a": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    r = nibbled.chat(tools=tools)
    assert r.status == 200 or refused(r, 400, "invalid_value", "messages")


def test_json_pool(nibbled):
    """A body that is small as text and large as a tree is refused, and the next one is served."""
    body = '{"metadata":[%s1]}' % ("[]," * 300000)
    refused(nibbled.post("/v1/completions", body), 413, "request_too_large")
    assert nibbled.complete().status == 200


def test_a_thousand_malformed_requests(start):
    """Mutations of a good request: each gets an answer or a closed connection; the daemon stays
    healthy and its books exact."""
    nibbled = start(engine={"ctx_tokens": 512}, defaults={"answer_tokens": 2})
    body = json.dumps({**CHAT, "temperature": 0.5, "stop": ["a"], "tools": [], "stream": True}).encode()
    head = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body))
    rng = random.Random(20251122)
    statuses = {}
    for i in range(1000):
        data = bytearray(body if i % 2 else head + body)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            how = rng.randrange(4)
            if how == 0:
                data[at] = rng.randrange(256)
            elif how == 1:
                del data[at:at + rng.randint(1, 8)]
            elif how == 2:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
            else:
                data[at:at] = rng.choice([b"\r\n", b"\x00", b"{", b"[", b'"', b"\\u", b"1e999", b"\xff"])
        if i % 2:
            data = head.replace(b"%d" % len(body), b"%d" % len(data)) + data
        got = nibbled.raw(bytes(data))
        assert got == b"" or got.startswith(b"HTTP/1."), got[:100]
        status = got[9:12].decode() if got else "closed"
        statuses[status] = statuses.get(status, 0) + 1
    print(statuses)
    assert not any(s.startswith("5") and s != "501" and s != "505" for s in statuses), statuses
    assert nibbled.get("/health").status == 200
    m = nibbled.check_ledger()
    assert m["requests_failed_total"] == 0
    nibbled.stop()
