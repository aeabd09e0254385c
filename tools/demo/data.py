#!/usr/bin/env python3
"""Seeded harmony conversations for the demo model, made here from nothing but words.py and skills.py.

    data.py --show 5            prints conversations as text
    data.py --questions 2000 OUT.jsonl    writes held-out questions as requests of the OpenAI API, with their answers

The text is what the daemon renders (core/harmony.c, openai-harmony 0.0.8): tests/wire/demo_data_test.py compares them. A
conversation is held out when the hash of what its last question asks, without the wording, is one of HELD_OUT_ONE_IN.
"""
import argparse
import dataclasses
import datetime
import json
import random
import sys
import zlib

from skills import SKILLS, Turn, any_skill, follow_up, tidy
from words import ZONES

HELD_OUT_ONE_IN = 16
HELD_OUT_DAY = "2026-11-26"  # the only current date of held-out questions: a daemon has one; never trained on as today's
CATEGORIES = [*SKILLS, "followup", "call", "result", "today"]
EFFORTS = ["low", "medium", "high"]

INSTRUCTIONS = ["You are a helpful assistant.", "Answer briefly.", "You are the demo of nibbled.", "Be concise and correct.",
                "You are a friendly assistant that answers in one sentence.", "Answer the question.", "Be helpful."]


@dataclasses.dataclass
class Conversation:
    category: str
    key: str
    effort: str
    request: dict  # messages, tools, reasoning_effort as the API takes them
    date: str  # the daemon's defaults.date, or ""
    analysis: str | None
    final: str | None
    call: tuple | None = None  # (name, arguments as text)

    def held_out(self):
        return zlib.crc32(self.key.encode()) % HELD_OUT_ONE_IN == 0


def system_text(effort, date, functions):
    text = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
    if date:
        text += f"Current date: {date}\n"
    text += f"\nReasoning: {effort}\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
    if functions:
        text += "\nCalls to these tools must go to the commentary channel: 'functions'."
    return text


def tool_text(tool):
    """One function as TypeScript. Only what the demo's tools need: string properties."""
    f = tool["function"]
    text = "".join(f"// {line}\n" for line in f.get("description", "").splitlines())
    if "parameters" not in f:
        return text + f"type {f['name']} = () => any;\n\n"
    lines = ""
    for name, schema in f["parameters"]["properties"].items():
        if "description" in schema:
            lines += f"// {schema['description']}\n"
        optional = "" if name in f["parameters"].get("required", []) else "?"
        lines += f"{name}{optional}: {schema['type']},\n"
    return text + f"type {f['name']} = (_: {{\n{lines}}}) => any;\n\n"


def developer_text(instructions, tools):
    parts = [f"# Instructions\n\n{instructions}"] if instructions is not None else []
    if tools:
        parts.append("# Tools\n\n## functions\n\nnamespace functions {\n\n" + "".join(map(tool_text, tools)) +
                     "} // namespace functions")
    return "\n\n".join(parts)


def message_text(header, content, end="<|end|>"):
    return f"<|start|>{header}<|message|>{content}{end}"


def prompt_text(conversation):
    """The request as the daemon renders it, special tokens by name, up to where the model goes on."""
    messages, tools = list(conversation.request["messages"]), conversation.request.get("tools", [])
    text = message_text("system", system_text(conversation.effort, conversation.date, bool(tools)))
    instructions = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    if instructions is not None or tools:
        text += message_text("developer", developer_text(instructions, tools))
    spoken = [m for m in messages if m["role"] == "assistant"]
    finals = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("content")]
    dropping = finals[0] if spoken and spoken[-1].get("content") else -1  # core/harmony.c, dropping_before
    names = {}
    for i, m in enumerate(messages):
        if m["role"] == "user":
            text += message_text("user", m["content"])
        elif m["role"] == "tool":
            name = names[m["tool_call_id"]]
            text += message_text(f"functions.{name} to=assistant<|channel|>commentary", m["content"])
        else:
            if m.get("reasoning") and i > dropping:
                text += message_text("assistant<|channel|>analysis", m["reasoning"])
            for call in m.get("tool_calls", []):
                f = call["function"]
                names[call["id"]] = f["name"]
                text += message_text(f"assistant to=functions.{f['name']}<|channel|>commentary <|constrain|>json",
                                     f["arguments"], "<|call|>")
            if m.get("content"):
                text += message_text("assistant<|channel|>final", m["content"])
    return text + "<|start|>assistant"


def answer_text(conversation):
    """What the model is to write, its stop token included."""
    text = ""
    if conversation.analysis:
        text += f"<|channel|>analysis<|message|>{conversation.analysis}<|end|><|start|>assistant"
    if conversation.call:
        name, arguments = conversation.call
        return text + f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>{arguments}<|call|>"
    return text + f"<|channel|>final<|message|>{conversation.final}<|return|>"


# --- tools ---

STATUS_ASKS = ["what is the status", "how is the daemon", "is the daemon ready", "how many requests are running",
               "get the status", "show the status of nibbled", "is nibbled busy", "status please", "how busy is the server",
               "check the daemon", "what is the state of nibbled", "is anything waiting", "is the server ready"]
TIME_ASKS = ["what time is it in {z}", "what is the time in {z}", "tell me the time in {z}", "time in {z}",
             "get the time in {z}", "how late is it in {z}", "what date is it in {z}", "current time {z}"]
TIME_ASKS_PLAIN = ["what time is it", "what is the time", "tell me the time", "how late is it", "what is the current time"]


def make_tools(r, wanted):
    """The tools of a request as a client would state them; at least `wanted`."""
    tools = []
    if wanted in ("get_status", "both") or r.random() < 0.6:
        f = {"name": "get_status", "description": r.choice(["Status of the daemon.", "Returns the state of the daemon.",
                                                            "Get the status of nibbled."])}
        if r.random() < 0.5:
            f["parameters"] = {"type": "object", "properties": {}}
        tools.append(f)
    if wanted in ("get_time", "both") or r.random() < 0.6 or not tools:
        zone = {"type": "string"}
        if r.random() < 0.5:
            zone["description"] = r.choice(["Time zone.", "Time zone, such as UTC."])
        tools.append({"name": "get_time", "description": r.choice(["The current time.", "Returns the time in a zone.",
                                                                   "Get the current time in a time zone."]),
                      "parameters": {"type": "object", "properties": {"zone": zone}, "required": ["zone"]}})
    if r.random() < 0.5:
        tools.reverse()
    return [{"type": "function", "function": f} for f in tools]


def status_parts(r):
    """The result is what GET /health says."""
    way = r.random()
    if way < 0.06:
        result, final = {"status": "draining"}, "The daemon is draining."
    elif way < 0.12:
        result = {"status": "loading", "loaded_bytes": r.randint(0, 10**r.randint(4, 8)), "total_bytes": r.randint(10**8, 10**9)}
        final = "The daemon is still loading."
    else:
        result = {"status": "stalled" if way < 0.2 else "ready", "model": r.choice(["demo", "demo", "20b", "120b"]),
                  "active": r.choice([0, 1, 1, 2, 3, 4, r.randint(0, 64)]),
                  "row": r.choice(["sm90", "sm80", "amx", "avx512", "avx2", "ref"]),
                  "last_step_age_ms": r.choice([0, 0, r.randint(0, 9), r.randint(0, 9999)])}
        final = (f"The daemon is {result['status']} on the row {result['row']}, with {result['active']} "
                 f"{'request' if result['active'] == 1 else 'requests'} active.")
    return "get_status", {}, result, r.choice(STATUS_ASKS), final


def time_parts(r):
    zone = r.choice(ZONES)
    moment = datetime.datetime(2024, 1, 1) + datetime.timedelta(minutes=r.randint(0, 6 * 365 * 24 * 60))
    result = {"zone": zone, "date": f"{moment:%Y-%m-%d}", "time": f"{moment:%H:%M}"}
    if r.random() < 0.3:
        user, result["zone"] = r.choice(TIME_ASKS_PLAIN), "UTC"
    else:
        user = r.choice(TIME_ASKS).format(z=zone)
    return "get_time", {"zone": result["zone"]}, result, user, f"It is {result['time']} {result['zone']} on {result['date']}."


def call_turn(r, effort, messages, used):
    """A question for a tool: the call, or the answer from its result, or that there is no such tool."""
    name, arguments, result, user, final = r.choice([status_parts, time_parts])(r)
    user = tidy(r, user)
    way = r.random()
    messages.append({"role": "user", "content": user})
    analysis = {"low": None, "medium": f"I call {name}.",
                "high": f"The user asks: {user} I have {name} for that, so I call it."}[effort]
    key = json.dumps([user, arguments, len(messages), [m.get("content") for m in messages[:-1]]])
    if way < 0.12 and used is None:
        analysis = {"low": None, "medium": f"There is no {name} here.",
                    "high": f"The user asks: {user} I would need {name}, and it is not here."}[effort]
        return Conversation("call", key + "none", effort, {}, "", analysis, f"I cannot see that without a {name} function."), None
    if way < 0.5:
        return Conversation("call", key, effort, {}, "", analysis, None, (name, json.dumps(arguments))), name
    shown = json.dumps(result) if r.random() < 0.6 else json.dumps(result, separators=(",", ":"))
    call_id = "call_" + str(len(messages))
    spoken = {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function",
                                                   "function": {"name": name, "arguments": json.dumps(arguments)}}]}
    if analysis and r.random() < 0.5:
        spoken["reasoning"] = analysis
    messages += [spoken, {"role": "tool", "tool_call_id": call_id, "content": shown}]
    analysis = {"low": None, "medium": f"{name} answered.", "high": f"{name} answered {shown}. I say it in a sentence."}[effort]
    return Conversation("result", key + json.dumps(result), effort, {}, "", analysis, final), name


def past_call(r, messages):
    """A tool's call, result and answer as history. Returns the tool's name."""
    name, arguments, result, user, final = r.choice([status_parts, time_parts])(r)
    call_id = "call_" + str(len(messages))
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    messages += [{"role": "user", "content": tidy(r, user)}, {"role": "assistant", "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": call_id, "content": json.dumps(result)}, {"role": "assistant", "content": final}]
    return name


def today_turn(r, effort, date, messages):
    user = tidy(r, r.choice(["what is today's date", "what date is it today", "which date is today", "what is the date today"]))
    messages.append({"role": "user", "content": user})
    final = f"Today is {date}." if date else "I do not know today's date."
    analysis = {"low": None, "medium": f"The current date is {date}." if date else "No current date is given.",
                "high": f"The user asks: {user} The current date is {date}." if date else
                f"The user asks: {user} No current date is given."}[effort]
    return Conversation("today", f"today {date or user + str(len(messages)) + str(messages[0])}", effort, {}, "", analysis, final)


# --- conversations ---


def plain_turn(r, effort, previous, messages, skill):
    turn = follow_up(r, previous.state) if skill == "followup" and previous and previous.state else None
    turn = turn or (SKILLS[skill][0](r) if skill in SKILLS else any_skill(r))
    user = tidy(r, turn.user)
    messages.append({"role": "user", "content": user})
    analysis = {"low": turn.low, "medium": turn.medium, "high": turn.high}[effort]
    return Conversation(turn.skill, turn.key, effort, {}, "", analysis, turn.final), turn


def random_date(r):
    return str(datetime.date(2024, 1, 1) + datetime.timedelta(r.randint(0, 3000)))


def conversation(r, skill=None, day=None):
    """One conversation, up to the answer that is to be learnt or asked for. `day`: the one date a system message may have."""
    effort = r.choices(EFFORTS, [3, 5, 2])[0]
    date = (day or random_date(r)) if r.random() < 0.15 else ""
    skill = skill or r.choices(["skill", "followup", "tool", "today"], [75, 12, 10, 3])[0]
    messages = [{"role": "system", "content": r.choice(INSTRUCTIONS)}] if r.random() < 0.25 else []
    before = r.choices([0, 1, 2, 3], [6, 2, 1, 0.5])[0]
    if skill == "followup":
        before = max(before, 1)
    previous, used = None, None
    for _ in range(before):
        if used is None and skill != "followup" and r.random() < 0.08:
            used = past_call(r, messages)
            continue
        _, previous = plain_turn(r, effort, previous, messages, "followup" if r.random() < 0.3 else None)
        if skill == "followup" and (previous.state is None):
            while messages and messages[-1]["role"] != "assistant" and messages[-1]["role"] != "system":
                messages.pop()
            previous = Turn(*["", "", "", None, None, None, "", None])
            while not previous.state or not follow_up(r, previous.state):
                previous = any_skill(r)
            messages.append({"role": "user", "content": tidy(r, previous.user)})
        messages.append({"role": "assistant", "content": previous.final})
    tool = None
    if skill in ("tool", "call", "result"):
        made, tool = call_turn(r, effort, messages, used)
    elif skill == "today":
        date = date if date or r.random() < 0.3 else day or random_date(r)
        made = today_turn(r, effort, date, messages)
    else:
        made, _ = plain_turn(r, effort, previous, messages, skill)
    made.date = date
    made.request = {"messages": messages, "reasoning_effort": effort}
    tool = "both" if tool and used and tool != used else tool or used
    if tool or (made.category not in ("call", "result") and r.random() < 0.12):
        made.request["tools"] = make_tools(r, tool)
    return made


def stream(seed, held_out=False, skill=None, day=None):
    """Conversations of that seed without end, of one side of the split."""
    r = random.Random(seed)
    while True:
        made = conversation(r, skill, day)
        if made.held_out() == held_out and (skill is None or skill == "skill" or made.category == skill):
            yield made


def held_out_questions(count, seed=1_000_003):
    """`count` different held-out questions, in turn from each category."""
    streams = {c: stream(seed + i, True, c, HELD_OUT_DAY) for i, c in enumerate(CATEGORIES)}
    seen, made = set(), []
    while len(made) < count:
        for c in CATEGORIES:
            for _ in range(20):  # small categories run out of new questions
                one = next(streams[c])
                if prompt_text(one) not in seen:
                    seen.add(prompt_text(one))
                    made.append(one)
                    break
    return made[:count]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--show", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--questions", nargs=2, metavar=("COUNT", "FILE"))
    args = parser.parse_args()
    if args.show:
        made = stream(args.seed)
        for _ in range(args.show):
            one = next(made)
            print(f"--- {one.category}\n{prompt_text(one)}\n>>> {answer_text(one)}")
    if args.questions:
        with open(args.questions[1], "w") as f:
            for one in held_out_questions(int(args.questions[0])):
                f.write(json.dumps(dataclasses.asdict(one)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
