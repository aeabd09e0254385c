#!/usr/bin/env python3
"""Conversations and answers with what openai-harmony 0.0.8 makes of them.

    harmony_gen.py          writes tests/vectors/harmony_render.jsonl and harmony_parse.jsonl
    harmony_gen.py --check  fails when the committed files differ

harmony_render_test.c and harmony_parse_test.c read them. One case a line; the first lines are the inputs of
openai-harmony's own golden tests, whose texts are compared here by hash. harmony_full.py makes many more.
"""
import hashlib
import json
import os
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(ROOT / "etc" / "o200k")

import openai_harmony as oh  # noqa: E402  (reads the environment)

HERE = pathlib.Path(__file__).resolve().parent
SEED = 20251122
RENDER_CASES = 330
PARSE_CASES = 400
ENC = oh.load_harmony_encoding("HarmonyGptOss")
EFFORT = {"low": oh.ReasoningEffort.LOW, "medium": oh.ReasoningEffort.MEDIUM, "high": oh.ReasoningEffort.HIGH}
CONSTRAIN = "<|constrain|>"


# ---- a conversation in our form, through openai-harmony ------------------------------------------------------------

def system_message(s):
    content = oh.SystemContent.new()
    content.model_identity = s.get("identity", content.model_identity)
    content.knowledge_cutoff = s.get("cutoff", content.knowledge_cutoff)
    content.conversation_start_date = s.get("date")
    if "effort" in s:
        content.reasoning_effort = EFFORT[s["effort"]] if s["effort"] else None
    if "channels" in s:
        content.channel_config = oh.ChannelConfig(
            valid_channels=s["channels"], channel_required=s.get("channel_required", True))
    if s.get("python"):
        content.with_python_tool()
    if s.get("browser"):
        content.with_browser_tool()
    return oh.Message.from_role_and_content(oh.Role.SYSTEM, content)


def developer_message(d):
    """The renderer of openai-harmony knows no response formats: their section, from its docs/format.md, is put after
    the text that it renders for the rest."""
    content = oh.DeveloperContent.new()
    content.instructions = d.get("instructions")
    if d.get("tools"):
        content.with_function_tools(
            [oh.ToolDescription.new(t["name"], t.get("description", ""), t.get("parameters")) for t in d["tools"]])
    message = oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)
    if not d.get("formats"):
        return message, None
    text = ENC.decode_utf8(ENC.render(message)[3:-1])
    sections = [text] if text else []
    sections.append("# Response Formats")
    for f in d["formats"]:
        sections.append("## " + f["name"])
        about = "".join("// " + line + "\n" for line in f.get("description", "").splitlines())
        sections.append(about + json.dumps(f["schema"], ensure_ascii=False, separators=(",", ":")))
    return message, "\n\n".join(sections)


def plain_message(m):
    role = oh.Role(m["role"])
    if role == oh.Role.DEVELOPER:
        content = [oh.DeveloperContent(instructions="".join(m["parts"]))]
    else:
        content = [oh.TextContent(text=p) for p in m["parts"]]
    message = oh.Message(author=oh.Author(role=role, name=m.get("name")), content=content)
    message.recipient = m.get("recipient")
    message.channel = m.get("channel")
    if m.get("constrain"):
        message.content_type = CONSTRAIN + m.get("content_type", "")
    else:
        message.content_type = m.get("content_type")
    return message


def render(conv):
    messages, developer_text = [], None
    if "system" in conv:
        messages.append(system_message(conv["system"]))
    if "developer" in conv:
        message, developer_text = developer_message(conv["developer"])
        messages.append(message)
    messages += [plain_message(m) for m in conv.get("messages", [])]
    config = oh.RenderConversationConfig(auto_drop_analysis=not conv.get("keep_analysis", False))
    c = oh.Conversation.from_messages(messages)
    tail = conv.get("tail", "completion")
    if tail == "completion":
        ids = ENC.render_conversation_for_completion(c, oh.Role.ASSISTANT, config)
    elif tail == "training":
        ids = ENC.render_conversation_for_training(c, config)
    else:
        ids = ENC.render_conversation(c, config)
    if developer_text is None:
        return ids
    # the developer message is the first or, after the system message, the second one
    start = ids.index(200006, 1) if "system" in conv else 0
    end = ids.index(200007, start)
    return ids[: start + 3] + ENC.encode(developer_text, disallowed_special=()) + ids[end:]


def fnv(ids):
    """FNV-1a, 64 bits, over the ids as little-endian u32."""
    h = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return "%016x" % h


# ---- openai-harmony's golden inputs ---------------------------------------------------------------------------------

def user(text):
    return {"role": "user", "parts": [text]}


def assistant(text, channel=None, **more):
    m = {"role": "assistant", "parts": [text], **more}
    if channel:
        m["channel"] = channel
    return m


WEATHER_FORMAT = {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}
GOLDEN_TOOLS = [
    {"name": "get_location", "description": "Gets the location of the user."},
    {"name": "get_current_weather", "description": "Gets the current weather in the provided location.", "parameters": {
        "type": "object", "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "format": WEATHER_FORMAT}, "required": ["location"]}},
    {"name": "get_multiple_weathers", "description": "Gets the current weather in the provided list of locations.",
     "parameters": {"type": "object", "properties": {
         "locations": {"type": "array", "items": {"type": "string"},
                       "description": 'List of city and state, e.g. ["San Francisco, CA", "New York, NY"]'},
         "format": WEATHER_FORMAT}, "required": ["locations"]}},
    {"name": "kitchensink", "description": "A function with various complex schemas.", "parameters": {
        "description": "params object", "type": "object", "properties": {
            "string": {"type": "string", "title": "STRING", "description": "A string", "examples": ["hello", "world"]},
            "string_nullable": {"type": "string", "nullable": True, "description": "A nullable string",
                                "default": "the default"},
            "string_enum": {"type": "string", "enum": ["a", "b", "c"]},
            "oneof_string_or_number": {
                "oneOf": [{"type": "string", "default": "default_string_in_oneof"},
                          {"type": "number", "description": "numbers can happen too"}],
                "description": "a oneof", "default": 20}}}},
]
LOOKUP = {"name": "lookup_weather", "description": "Use this tool to lookup the weather in a given location. Call it "
          "with the parameter 'location', can be any textual description of a location.",
          "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}}


def goldens():
    """(name, first 16 hex digits of the SHA-256 of the golden text, conversation)"""
    capital = user("What is the capital of the largest country in the world?")
    robot = {"instructions": "Answer the user's questions like a robot."}
    two = ["analysis", "final"]
    yield "simple_convo", "b7e6743bb8e5ddbd", {"system": {}, "messages": [user("What is 2 + 2?")]}
    efforts = {"low": ("b621f6b6c19736eb", "972feb2d16a4bec2"), "medium": ("5fda0a4c7ba61a81", "9cea812735e65f5f"),
               "high": ("b813600c32f652df", "1900d3e9ed57c2b9")}
    for effort, (with_robot, without) in efforts.items():
        s = {"effort": effort}
        yield "effort_" + effort, with_robot, {"system": s, "developer": robot, "messages": [capital]}
        yield "effort_" + effort + "_plain", without, {"system": s, "messages": [capital]}
    yield "reasoning_system", "b63e0e048b59c70e", {
        "system": {"effort": "medium", "channels": two}, "messages": [user("What is 2 + 2?")]}
    yield "reasoning_no_instruction", "2c15de121ecfa4c4", {
        "system": {"effort": "high", "channels": two},
        "messages": [user("What is the best place to eat candy in the world?")]}
    yield "reasoning_dates", "4d707e1900094bd0", {
        "system": {"effort": "medium", "channels": two, "date": "2021-01-01", "cutoff": "2021-01"},
        "messages": [user("What is 42 * pi?")]}
    yield "functions", "45a968b615c8a5cc", {
        "system": {"effort": "high", "date": "2025-06-28"},
        "developer": {"instructions": "Always respond in riddles", "tools": GOLDEN_TOOLS},
        "messages": [user("What is the weather like in SF?")]}
    dated = {"date": "2025-06-28"}
    yield "no_tools", "edf5933a2242c503", {"system": dated}
    yield "browser", "7269842a4d35e7da", {"system": {**dated, "browser": True}}
    yield "browser_function", "fc637e64778fe0dd", {"system": {**dated, "browser": True}, "developer": {"tools": [LOOKUP]}}
    yield "browser_python", "38385742ec88222a", {"system": {**dated, "browser": True, "python": True}}
    think = "User asks: “What is 2 + 2?” Simple arithmetic. Provide answer."
    yield "drop_analysis", "16c172504b489aed", {"messages": [
        user("What is 2 + 2?"), assistant(think, "analysis"), assistant("2 + 2 equals 4.", "final"),
        user("What about 9 / 2?")]}
    yield "ongoing_analysis", "127d10131742c057", {"messages": [
        user("What is the weather in SF?"),
        assistant("User asks: “What is the weather in SF?” We need to use lookup_weather tool.", "analysis"),
        assistant('{"location": "San Francisco"}', "commentary", recipient="functions.lookup_weather",
                  content_type="json", constrain=True),
        {"role": "tool", "name": "functions.lookup_weather", "parts": ['{"temperature": 20, "description": "sunny"}']}]}
    yield "preserve_analysis", "45578dfbd61c8a55", {"keep_analysis": True, "messages": [
        user("What is 2 + 2?"), assistant('User asks a simple question: "What is 2 + 2?" The answer: 4.', "analysis"),
        assistant("2 + 2 equals 4.", "final"), user("What about 9 / 2?")]}
    yield "analysis_between_finals", "f10c5d7cbd20c62f", {"tail": "none", "messages": [
        user("What is 2 + 2?"), assistant("thinking 2+2", "analysis"), assistant("4", "final"),
        user("What is 3 + 5?"), assistant("thinking 3+5", "analysis"), assistant("8", "final")]}


# ---- random conversations -------------------------------------------------------------------------------------------

WORDS = ["weather", "the city", "état", "naïve", "日本語", "नमस्ते", "مرحبا", "😊👋🏾", "<|start|>", "<|end|>", "a\nb", "it's",
         "// note", '"quoted"', "tab\there", "null", "x" * 30, "  spaces  ", "\u200b", "Ω≈ç", "don't", "1234567", "C:\\dir",
         "line one\nline two\r\nline three\n", "trailing \n\n", "кириллица", "<|constrain|>json", "{}", "e\u0301"]
NUMBERS = [0, 1, -1, 20, 10**12, -(2**53), 0.5, 1.0, -2.25, 1e16, 1e15, 1e-5, 1e-6, 1.5e300, 5e-324, 0.1, 123456.789, -0.0]
NAMES = ["get_weather", "find-it", "a", "X1", "search_in_files", "long_name_" + "y" * 40, "list"]
KEYS = ["location", "unit", "q", "max-results", "options", "ключ", "with space", "n", "tags", "id", "a.b"]


def words(r, low=1, high=6):
    return " ".join(r.choice(WORDS) for _ in range(r.randint(low, high)))


def json_value(r, depth=0):
    kind = r.randrange(7 if depth < 2 else 5)
    if kind == 5:
        return [json_value(r, depth + 1) for _ in range(r.randrange(3))]
    if kind == 6:
        return {r.choice(KEYS): json_value(r, depth + 1) for _ in range(r.randrange(3))}
    return [None, r.random() < 0.5, words(r, 1, 2), r.choice(NUMBERS), "\u0001\u007f\b\f\n\r\t\"\\/é"][kind]


def annotate(r, schema):
    if r.random() < 0.35:
        schema["description"] = words(r, 1, 3)
    if r.random() < 0.15:
        schema["title"] = words(r, 1, 2)
    if r.random() < 0.15:
        schema["examples"] = [json_value(r) if r.random() < 0.3 else words(r, 1, 2) for _ in range(r.randrange(3))]
    if r.random() < 0.25:
        schema["default"] = json_value(r)
    if r.random() < 0.15:
        schema["nullable"] = r.random() < 0.8
    if r.random() < 0.03:
        schema["oneOf"] = r.choice([None, {}, "x"])  # not a list: only hides the comments
    return schema


def schema(r, depth=0):
    kind = r.randrange(14 if depth < 3 else 9)
    if kind == 0:
        return annotate(r, {"type": "string", "enum": [r.choice(["a", "b c", "é", 1, None, "<|end|>"])
                                                       for _ in range(r.randrange(4))]})
    if kind == 1:
        return annotate(r, {"type": r.choice([["string", "null"], ["integer", "number"], [], ["null", 3], [1, 2]])})
    if kind == 2:
        return annotate(r, r.choice([{}, {"anyOf": [{"type": "string"}]}, {"$ref": "#/x"}, {"const": 1},
                                     {"type": "null"}, {"type": "what"}, {"enum": ["a"]}, {"type": 3}]))
    if kind == 3:
        return annotate(r, {"type": "array"})
    if kind < 9:
        return annotate(r, {"type": r.choice(["string", "number", "integer", "boolean"])})
    if kind == 9:
        return annotate(r, {"type": "array", "items": schema(r, depth + 1)})
    if kind < 12:
        out = annotate(r, {"type": "object"})
        if r.random() < 0.95:
            keys = r.sample(KEYS, r.randrange(4))
            out["properties"] = {k: schema(r, depth + 1) for k in keys}
            if r.random() < 0.6:
                out["required"] = r.sample(keys, r.randrange(len(keys) + 1)) + (["absent", 3] if r.random() < 0.1 else [])
        return out
    out = annotate(r, {"oneOf": [schema(r, depth + 1) for _ in range(r.randrange(4))]})
    if r.random() < 0.3 and out["oneOf"] and isinstance(out["oneOf"], list):
        out["description"] = out["oneOf"][0].setdefault("description", "the same words")
    return out


def parameters(r):
    if r.random() < 0.1:
        return r.choice([{}, {"type": "object"}, {"type": "object", "properties": {}}])
    if r.random() < 0.1:
        return schema(r, 1)
    out = annotate(r, {"type": "object", "properties": {k: schema(r, 1) for k in r.sample(KEYS, r.randint(1, 4))}})
    if isinstance(out.get("oneOf", []), list):
        out.pop("oneOf", None)
    out["required"] = r.sample(sorted(out["properties"]), r.randrange(len(out["properties"]) + 1))
    return out


def tool(r):
    t = {"name": r.choice(NAMES)}
    if r.random() < 0.9:
        t["description"] = words(r, 1, 3)
    if r.random() < 0.85:
        t["parameters"] = parameters(r)
    return t


def turn(r, out):
    """One user turn with reasoning, tool calls, results and perhaps an answer."""
    out.append({"role": "user", "parts": [words(r) for _ in range(1 if r.random() < 0.9 else r.randrange(4))]})
    if r.random() < 0.1:
        out[-1]["name"] = "bob"
    if r.random() < 0.05:
        out.append({"role": "developer", "parts": [words(r)]})
    for _ in range(r.randrange(3)):
        if r.random() < 0.7:
            out.append(assistant(words(r), "analysis"))
        if r.random() < 0.2:
            out.append(assistant(words(r), "commentary"))
        if r.random() < 0.6:
            to = r.choice(["functions." + r.choice(NAMES), "browser.search", "python", "all"])
            call = assistant(json.dumps({"q": words(r, 1, 2)}, ensure_ascii=False), r.choice(["commentary", "analysis"]),
                             recipient=to)
            if r.random() < 0.8:
                call["content_type"] = r.choice(["json", "code", "text x"])
                call["constrain"] = r.random() < 0.6
            elif r.random() < 0.3:
                call["constrain"] = True
            out.append(call)
            result = {"role": "tool", "name": to, "parts": [words(r)]}
            if r.random() < 0.7:
                result.update(recipient="assistant", channel="commentary")
            out.append(result)
    if r.random() < 0.7:
        out.append(assistant(words(r), r.choice(["final", "final", "final", "final", None])))


def conversation(r):
    conv = {}
    if r.random() < 0.85:
        s = conv["system"] = {}
        if r.random() < 0.7:
            s["effort"] = r.choice(["low", "medium", "high", None])
        if r.random() < 0.4:
            s["date"] = "2025-%02d-%02d" % (r.randint(1, 12), r.randint(1, 28))
        if r.random() < 0.15:
            s["identity"] = r.choice([None, "", words(r, 1, 3)])
        if r.random() < 0.15:
            s["cutoff"] = r.choice([None, "2023-10", ""])
        if r.random() < 0.2:
            s["channels"] = r.choice([[], ["final"], ["analysis", "final"]])
            s["channel_required"] = r.random() < 0.5
        if r.random() < 0.1:
            s["browser"] = True
        if r.random() < 0.1:
            s["python"] = True
    if r.random() < 0.7:
        d = conv["developer"] = {}
        if r.random() < 0.7:
            d["instructions"] = r.choice(["", words(r), words(r)])
        if r.random() < 0.6:
            d["tools"] = [tool(r) for _ in range(r.randint(1, 3))]
        if r.random() < 0.15:
            d["formats"] = [{"name": r.choice(NAMES), "schema": json_floatless(parameters(r))}
                            for _ in range(r.randint(1, 2))]
            if r.random() < 0.6:
                d["formats"][0]["description"] = r.choice(["shopping list", "one\ntwo"])
    messages = conv["messages"] = []
    for _ in range(r.randrange(5)):
        turn(r, messages)
    if r.random() < 0.2:
        conv["keep_analysis"] = True
    if r.random() < 0.2:
        conv["tail"] = r.choice(["none", "training"])
    return conv


def json_floatless(value):
    """Python prints reals in its own way; the formats of a developer message are printed by Python here."""
    if isinstance(value, float):
        return int(value) if abs(value) < 1e15 else 7
    if isinstance(value, str):
        return value.replace("\u007f", "")
    if isinstance(value, list):
        return [json_floatless(v) for v in value]
    if isinstance(value, dict):
        return {k: json_floatless(v) for k, v in value.items()}
    return value


def render_lines(seed, count):
    cases = []
    for name, sha, conv in goldens():
        ids = render(conv)
        got = hashlib.sha256(ENC.decode_utf8(ids).encode()).hexdigest()[:16]
        if got != sha:
            raise SystemExit(f"golden {name}: the text rendered here is not openai-harmony's")
        cases.append({"name": name, "c": conv, "ids": ids})
    r = random.Random(seed)
    for i in range(count):
        conv = conversation(r)
        ids = render(conv)
        case = {"c": conv, "n": len(ids), "fnv": fnv(ids)}
        if i % 16 == 0:
            case["ids"] = ids
        cases.append(case)
    return cases


# ---- answers --------------------------------------------------------------------------------------------------------

def encode(text):
    return ENC.encode(text, allowed_special="all")


STOPS = {200007, 200002, 200012}
TURN_ENDS = {200002, 200012}
PERSONS = {"", "all", "user", "assistant"}


def channel_of(name):
    for known in ("analysis", "commentary", "final"):
        if known in (name or ""):
            return known
    return "none"


def names_tool(word):
    return word.startswith("functions.") or word.startswith("browser.") or word == "python"


def delivered(messages, headers):
    """What nibbled gives a client for the messages that openai-harmony parsed; a tool's or user's message ends it."""
    out = []
    for m, header in zip(messages, headers):
        if m.author.role != oh.Role.ASSISTANT:
            return out, True
        to = m.recipient
        if to is not None and "to=" + to not in header and not names_tool(to):
            to = None
        channel = channel_of(m.channel)
        text = "".join(c.text for c in m.content)
        if to is not None and to not in PERSONS:
            name = to[10:] if to.startswith("functions.") and len(to) > 10 else to
            out.append(["call", channel, name, text])
        else:
            out.append(["reasoning" if channel == "analysis" else "content", channel, "", text])
    return out, False


def plain_role(header):
    """The header begins with a role that both read alike: the assistant, or one that is surely somebody else's."""
    first = header.split("<|")[0].split()
    if not first:
        return False
    return first[0] == "assistant" or not (first[0].startswith(("assistant", "to=")) or channel_of(first[0]) == first[0])


def header_texts(ids, role_given):
    """The header of each message, as text; None when the sequence is outside of what openai-harmony and nibbled read
    alike (special tokens inside content, which it takes for text; a second channel in a header)."""
    headers, header, content = [], [] if role_given else None, False
    for i in ids:
        special = i >= 199998
        if content:
            if i in STOPS:
                content, header = False, None
            elif special:
                return None
        elif header is None:
            if i != 200006:
                return None
            header = []
        elif i == 200008:
            text = ENC.decode(header)
            if text.count("<|channel|>") > 1 or "<|start|>" in text or len(text) > 150:
                return None
            if not role_given and not plain_role(text) or "<|constrain|><|channel|>" in text:
                return None
            if "\u00a0" in text.rstrip():
                return None
            headers.append(text)
            content, role_given = True, False
        else:
            if special and i not in (200003, 200005):
                return None
            header.append(i)
    return headers


def answer_case(ids):
    """The case of these ids, or None when openai-harmony refuses them."""
    out, done, calls = [], False, False
    at = 0
    while at < len(ids):
        end = next((k for k in range(at, len(ids)) if ids[k] in TURN_ENDS), len(ids) - 1) + 1
        segment = ids[at:end]
        role = None if segment[0] == 200006 else oh.Role.ASSISTANT
        if at > 0 and role is not None:
            return None
        headers = header_texts(segment, role is not None)
        if headers is None:
            return None
        try:
            messages = ENC.parse_messages_from_completion_tokens(segment, role, strict=True)
        except oh.HarmonyError:
            return None
        if len(messages) != len(headers):
            return None
        got, foreign = delivered(messages, headers)
        out += got
        done = foreign or segment[-1] in TURN_ENDS
        calls = any(m[0] == "call" for m in got)
        at = end
    finish = ("tool_calls" if calls else "stop") if done else "length"
    return {"ids": ids, "out": out, "finish": finish}


HEADERS = ["<|channel|>analysis", "<|channel|>final", "<|channel|>commentary", "<|channel|>commentary to=functions.f",
           " to=functions.get-it<|channel|>commentary", "<|channel|>analysis to=browser.search code",
           "<|channel|>analysis to=python code", "<|channel|>commentary to=functions.f <|constrain|>json",
           "<|channel|>commentary to=functions.f<|constrain|>json", " to=functions.g<|channel|>commentary <|constrain|>json",
           " to=functions.g<|channel|>commentary json", "<|channel|>final <|constrain|>json", "<|channel|>final json", "",
           "<|channel|>––commentary", "<|channel|>commentary<|constrain|>response", "<|channel|>commentary functions.f json",
           "<|channel|>commentary to=functions.f ", " ", "<|channel|>final\n", "<|channel|>analysis to=all",
           "<|channel|>commentary to=user text", "<|channel|>commentary browser.open", "<|channel|>comment to=functions.h",
           "<|channel|>final\u00a0", "<|channel|>commentary a b", " python"]
CONTENTS = ["", "Hello world", '{"a": 1}', "नमस्ते 😊👨‍👩‍👧‍👦🇺🇸", "  two\n\nlines ", '{"q":"é"}', "to=functions.f", "a", "\u00a0", "日本語テキスト"]
BROKEN = [9552, 132990, 9552, 172, 99, 254]


def random_answer(r):
    ids = []
    for n in range(r.randint(1, 4)):
        if n > 0 or r.random() < 0.1:
            ids += encode("<|start|>" + r.choice(["assistant"] * 12 + ["functions.f to=assistant", "user", "tool x"]))
        ids += encode(r.choice(HEADERS) + "<|message|>")
        for _ in range(r.randrange(4)):
            ids += [r.choice(BROKEN)] if r.random() < 0.15 else encode(r.choice(CONTENTS))
        ids += encode(r.choice(["<|end|>"] * 6 + ["<|call|>", "<|return|>", ""]))
        if ids[-1] not in STOPS:
            break
    if r.random() < 0.25:
        at = r.randrange(len(ids))
        ids[at:at + r.randrange(2)] = [r.choice(ids + [200003, 200005, 200007, 220, 316, 28])]
    return ids


def golden_answers():
    """The token sequences of openai-harmony's parser tests."""
    yield [200005, 35644, 200008, 1844, 31064, 25, 392, 4827, 382, 220, 17, 659, 220, 17, 16842, 12295, 81645, 13, 51441,
           6052, 13, 200002, 200006, 173781, 200005, 17196, 200008, 17, 659, 220, 17, 314, 220, 19, 13]
    yield [200005, 35644, 200008, 1844, 31064, 25, 392, 4827, 382, 290, 11122, 306, 40510, 16842, 1416, 1309, 316, 1199,
           37342, 170154, 4584, 13, 200007, 200006, 173781, 200005, 35644, 316, 28, 29712, 170154, 3490, 200008, 10848, 7693,
           1243, 392, 173844, 18583]
    call = '{"latitude":48.8566,"longitude":2.3522}<|call|>'
    for text in ("<|channel|>analysis<|message|>User asks who is president. Let's browse to confirm.<|end|><|start|>assistant"
                 '<|channel|>commentary to=browser.search code<|message|>{"query": "president", "topn": 10}<|call|>'
                 '<|start|>browser.search to=assistant<|channel|>commentary<|message|>{"result": "https://openai.com/"}<|end|>',
                 '<|start|>browser.search to=assistant<|channel|>commentary<|message|>{"result": "https://openai.com/"}',
                 "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>" + call,
                 "<|start|>assistant to=functions.get_weather<|channel|>commentary<|constrain|>json<|message|>" + call,
                 "<|start|>assistant<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>" + call,
                 "<|start|>assistant<|message|>Hello Müller, Γειά σου, Привет, שלום, مرحبا, नमस्ते, こんにちは, 안녕하세요, 你好. "
                 "(naïve) vs. (nai\u0308ve). 😊👋🏾👨‍👩‍👧‍👦🇺🇸.<|end|>"):
        yield encode(text)
    start = encode("<|start|>assistant<|message|>")
    yield start + [9552, 9552] + encode("worked<|end|>")
    yield start + [9552] + encode("XY<|end|>")
    yield start + [9552] + encode(" interesting<|end|>")
    yield start + [9552] + encode(" interesting story")
    yield start + [9552, 9552] + encode("<|end|>") + start + encode("Hi<|end|>")


def parse_lines(seed, count):
    cases = [answer_case(ids) for ids in golden_answers()]
    if None in cases:
        raise SystemExit("openai-harmony refuses one of its own parser inputs")
    r = random.Random(seed)
    tried = 0
    while len(cases) < count:
        tried += 1
        case = answer_case(random_answer(r))
        if case:
            cases.append(case)
    return cases, tried


# ---- files ----------------------------------------------------------------------------------------------------------

def dump(cases):
    return "".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) + "\n" for c in cases)


def main():
    files = {"harmony_render.jsonl": dump(render_lines(SEED, RENDER_CASES)),
             "harmony_parse.jsonl": dump(parse_lines(SEED, PARSE_CASES)[0])}
    for name, text in files.items():
        path = HERE / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{name} is not what openai-harmony gives now")
        print(f"{name}: {text.count(chr(10))} cases, {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
