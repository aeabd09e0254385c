/* appliance/chat_in.c: owns nothing; arrays come from the JSON pool. Limits: NIB_MAX_MESSAGES,
 * NIB_MAX_TOOLS, NIB_MAX_NAME_BYTES. Front thread. Fails with a refusal that names the field. */
#include "appliance/chat_in.h"

#include <string.h>

#include "appliance/json_in.h"

#define FUNCTIONS "functions."

static struct nib_span span_of(const json_t *string)
{
    return nib_span_of(json_string_value(string), json_string_length(string));
}

static bool absent(const json_t *v)
{
    return !v || json_is_null(v);
}

static bool no_room(struct nib_refusal *ret)
{
    return nib_refuse(ret, 413, "request_too_large", NULL,
                      "the request needs more memory to decode than limits.json_bytes");
}

/* Function names are what OpenAI allows; anything else could break a message header. */
static bool name_ok(const json_t *v)
{
    size_t n = json_string_length(v);
    return json_is_string(v) && n >= 1 && n <= NIB_MAX_NAME_BYTES &&
           strspn(json_string_value(v), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == n;
}

static bool bad_name(struct nib_refusal *ret, const char *param)
{
    return nib_refuse(ret, 400, "invalid_value", param, "a function's name must have 1 to %d letters, digits, _ or -",
                      NIB_MAX_NAME_BYTES);
}

/* "functions.NAME" in the pool. */
static bool function_span(struct nib_span name, struct nib_span *ret)
{
    char *text = nib_json_take(sizeof FUNCTIONS + name.len);
    if (!text)
        return false;
    memcpy(text, FUNCTIONS, sizeof FUNCTIONS - 1);
    memcpy(text + sizeof FUNCTIONS - 1, name.ptr, name.len);
    *ret = nib_span_of(text, sizeof FUNCTIONS - 1 + name.len);
    return true;
}

/* "content": a string, or a list of {"type": "text", "text": ...}; absent gives no parts. */
static bool read_content(const json_t *v, struct nib_harmony_message *m, struct nib_refusal *ret)
{
    if (absent(v))
        return true;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    struct nib_span *parts = nib_json_take((n + 1) * sizeof parts[0]);
    if (!parts)
        return no_room(ret);
    for (size_t i = 0; i < n; i++) {
        const json_t *text = v;
        if (json_is_array(v)) {
            const json_t *part = json_array_get(v, i);
            const char *type = json_string_value(json_object_get(part, "type"));
            if (!type || strcmp(type, "text") != 0)
                return nib_refuse(ret, 400, "unsupported_value", "messages",
                                  "message content may hold parts of type \"text\" only; this model "
                                  "has no image, audio or file input");
            text = json_object_get(part, "text");
        }
        if (!json_is_string(text))
            return nib_refuse(ret, 400, "invalid_type", "messages",
                              "message content must be a string or a list of text parts");
        parts[i] = span_of(text);
    }
    m->parts = parts;
    m->parts_count = n;
    return true;
}

static struct nib_harmony_message *add(struct nib_chat *chat, enum nib_harmony_role role)
{
    NIB_MUST(chat->messages_count < chat->messages_max);
    struct nib_harmony_message *m = &chat->messages[chat->messages_count++];
    *m = (struct nib_harmony_message){.role = role};
    return m;
}

/* The first system or developer message, when it is the first of all, is the conversation's
 * instructions; later ones are messages of their own. */
static bool read_developer(const json_t *message, size_t index, struct nib_chat *chat, struct nib_refusal *ret)
{
    struct nib_harmony_message m = {.role = NIB_ROLE_DEVELOPER};
    if (!read_content(json_object_get(message, "content"), &m, ret))
        return false;
    if (index != 0) {
        *add(chat, NIB_ROLE_DEVELOPER) = m;
        return true;
    }
    size_t bytes = 0;
    for (size_t i = 0; i < m.parts_count; i++)
        bytes += m.parts[i].len;
    chat->has_developer = true;
    if (m.parts_count == 1) {
        chat->developer.instructions = m.parts[0];
        return true;
    }
    char *text = nib_json_take(bytes + 1);
    if (!text)
        return no_room(ret);
    size_t at = 0;
    for (size_t i = 0; i < m.parts_count; i++) {
        memcpy(text + at, m.parts[i].ptr, m.parts[i].len);
        at += m.parts[i].len;
    }
    chat->developer.instructions = nib_span_of(text, bytes);
    return true;
}

static bool read_call(const json_t *call, struct nib_chat *chat, struct nib_refusal *ret)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name");
    const json_t *arguments = json_object_get(function, "arguments");
    if (!name_ok(name))
        return bad_name(ret, "messages");
    if (!json_is_string(arguments))
        return nib_refuse(ret, 400, "invalid_type", "messages", "'arguments' of a tool call must be a string");
    struct nib_harmony_message *m = add(chat, NIB_ROLE_ASSISTANT);
    m->channel = NIB_SPAN("commentary");
    m->content_type = NIB_SPAN("json");
    m->constrain = true;
    struct nib_span *part = nib_json_take(sizeof *part);
    if (!part || !function_span(span_of(name), &m->recipient))
        return no_room(ret);
    *part = span_of(arguments);
    m->parts = part;
    m->parts_count = 1;
    return true;
}

/* Reasoning, text and calls of one assistant message are messages of their own in harmony. */
static bool read_assistant(const json_t *message, struct nib_chat *chat, struct nib_refusal *ret)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    const json_t *reasoning = json_object_get(message, "reasoning_content");
    if (absent(reasoning))
        reasoning = json_object_get(message, "reasoning");
    if (!absent(calls) && !json_is_array(calls))
        return nib_refuse(ret, 400, "invalid_type", "messages", "'tool_calls' must be a list");
    if (!absent(json_object_get(message, "function_call")))
        return nib_refuse(ret, 400, "unsupported_value", "messages",
                          "'function_call' is not supported; use 'tool_calls'");
    struct nib_harmony_message m = {.role = NIB_ROLE_ASSISTANT, .channel = NIB_SPAN("analysis")};
    if (!absent(reasoning) && !json_is_string(reasoning))
        return nib_refuse(ret, 400, "invalid_type", "messages", "'reasoning' must be a string");
    if (!absent(reasoning) && json_string_length(reasoning) > 0) {
        if (!read_content(reasoning, &m, ret))
            return false;
        *add(chat, NIB_ROLE_ASSISTANT) = m;
    }
    size_t calls_count = absent(calls) ? 0 : json_array_size(calls);
    m = (struct nib_harmony_message){.role = NIB_ROLE_ASSISTANT};
    m.channel = calls_count ? NIB_SPAN("commentary") : NIB_SPAN("final");
    if (!read_content(json_object_get(message, "content"), &m, ret))
        return false;
    bool empty = m.parts_count == 0 || (m.parts_count == 1 && m.parts[0].len == 0);
    if (!empty || calls_count == 0)
        *add(chat, NIB_ROLE_ASSISTANT) = m;
    if (calls_count > NIB_MAX_TOOLS)
        return nib_refuse(ret, 400, "invalid_value", "messages", "'tool_calls' has %zu calls; at most %d are allowed",
                          calls_count, NIB_MAX_TOOLS);
    if (calls_count)
        chat->calls = calls;
    for (size_t i = 0; i < calls_count; i++)
        if (!read_call(json_array_get(calls, i), chat, ret))
            return false;
    return true;
}

/* Name of the function that the call with this id went to: one of the latest message that has
 * calls.
 */
static const json_t *name_of_call(const json_t *calls, const json_t *id)
{
    for (size_t c = json_array_size(calls); c-- > 0;) {
        const json_t *call = json_array_get(calls, c);
        if (json_equal(json_object_get(call, "id"), id))
            return json_object_get(json_object_get(call, "function"), "name");
    }
    return NULL;
}

static bool read_tool_result(const json_t *messages, size_t index, struct nib_chat *chat, struct nib_refusal *ret)
{
    const json_t *message = json_array_get(messages, index);
    const json_t *id = json_object_get(message, "tool_call_id");
    const json_t *name = json_is_string(id) ? name_of_call(chat->calls, id) : NULL;
    if (!name)
        name = json_object_get(message, "name");
    if (absent(name))
        return nib_refuse(ret, 400, "invalid_value", "messages",
                          "message %zu: 'tool_call_id' names no call of the message with calls before it", index);
    if (!name_ok(name))
        return bad_name(ret, "messages");
    struct nib_harmony_message *m = add(chat, NIB_ROLE_TOOL);
    m->recipient = NIB_SPAN("assistant");
    m->channel = NIB_SPAN("commentary");
    if (!function_span(span_of(name), &m->name))
        return no_room(ret);
    return read_content(json_object_get(message, "content"), m, ret);
}

static bool read_message(const json_t *messages, size_t i, struct nib_chat *chat, struct nib_refusal *ret)
{
    const json_t *message = json_array_get(messages, i);
    const char *role = json_string_value(json_object_get(message, "role"));
    if (role && (!strcmp(role, "system") || !strcmp(role, "developer")))
        return read_developer(message, i, chat, ret);
    if (role && !strcmp(role, "user"))
        return read_content(json_object_get(message, "content"), add(chat, NIB_ROLE_USER), ret);
    if (role && !strcmp(role, "assistant"))
        return read_assistant(message, chat, ret);
    if (role && !strcmp(role, "tool"))
        return read_tool_result(messages, i, chat, ret);
    return nib_refuse(ret, 400, "invalid_value", "messages",
                      "message %zu: 'role' must be system, developer, user, assistant or tool", i);
}

static bool read_messages(const json_t *messages, struct nib_chat *chat, struct nib_refusal *ret)
{
    size_t n = json_array_size(messages);
    if (!json_is_array(messages) || n == 0 || n > NIB_MAX_MESSAGES)
        return nib_refuse(ret, 400, "invalid_value", "messages", "'messages' must be a list of 1 to %d messages",
                          NIB_MAX_MESSAGES);
    size_t most = 0;
    for (size_t i = 0; i < n; i++)
        most += 2 + json_array_size(json_object_get(json_array_get(messages, i), "tool_calls"));
    chat->messages = nib_json_take(most * sizeof chat->messages[0]);
    chat->messages_max = most;
    if (!chat->messages)
        return no_room(ret);
    for (size_t i = 0; i < n; i++)
        if (!read_message(messages, i, chat, ret))
            return false;
    if (chat->messages_count > NIB_MAX_MESSAGES)
        return nib_refuse(ret, 400, "invalid_value", "messages",
                          "the conversation has %zu parts; at most %d are allowed", chat->messages_count,
                          NIB_MAX_MESSAGES);
    return true;
}

static bool read_tool(const json_t *tool, struct nib_harmony_tool *to, struct nib_refusal *ret)
{
    const char *type = json_string_value(json_object_get(tool, "type"));
    const json_t *function = json_object_get(tool, "function");
    const json_t *description = json_object_get(function, "description");
    const json_t *parameters = json_object_get(function, "parameters");
    if (!type || strcmp(type, "function") != 0)
        return nib_refuse(ret, 400, "unsupported_value", "tools", "'tools' may hold tools of type \"function\" only");
    if (!name_ok(json_object_get(function, "name")))
        return bad_name(ret, "tools");
    if (!absent(description) && !json_is_string(description))
        return nib_refuse(ret, 400, "invalid_type", "tools", "'description' must be a string");
    if (!absent(parameters) && !json_is_object(parameters))
        return nib_refuse(ret, 400, "invalid_type", "tools", "'parameters' must be an object");
    if (json_is_true(json_object_get(function, "strict")))
        return nib_refuse(ret, 400, "unsupported_value", "tools",
                          "'strict' must be false; this server does not enforce a schema");
    *to = (struct nib_harmony_tool){.name = span_of(json_object_get(function, "name")),
                                    .parameters = absent(parameters) ? NULL : parameters};
    if (!absent(description))
        to->description = span_of(description);
    return true;
}

/* "tool_choice": auto or none. */
static bool read_choice(const json_t *choice, bool *ret_none, struct nib_refusal *ret)
{
    const char *text = json_string_value(choice);
    *ret_none = text && !strcmp(text, "none");
    if (absent(choice) || *ret_none || (text && !strcmp(text, "auto")))
        return true;
    return nib_refuse(ret, 400, "unsupported_value", "tool_choice",
                      "'tool_choice' must be \"auto\" or \"none\"; a forced call is not supported");
}

static bool read_tools(const json_t *root, struct nib_chat *chat, struct nib_refusal *ret)
{
    const json_t *tools = json_object_get(root, "tools");
    bool none;
    if (!read_choice(json_object_get(root, "tool_choice"), &none, ret))
        return false;
    size_t n = json_array_size(tools);
    if (!absent(tools) && (!json_is_array(tools) || n > NIB_MAX_TOOLS))
        return nib_refuse(ret, 400, "invalid_value", "tools", "'tools' must be a list of at most %d tools",
                          NIB_MAX_TOOLS);
    if (n == 0)
        return true;
    struct nib_harmony_tool *list = nib_json_take(n * sizeof list[0]);
    if (!list)
        return no_room(ret);
    for (size_t i = 0; i < n; i++)
        if (!read_tool(json_array_get(tools, i), &list[i], ret))
            return false;
    if (none)
        return true; /* the model is not told of tools that it must not call */
    chat->developer.tools = list;
    chat->developer.tools_count = n;
    chat->has_developer = true;
    return true;
}

bool nib_chat_decode(const json_t *root, struct nib_chat *ret_chat, struct nib_refusal *ret_refusal)
{
    struct nib_chat chat = {0};
    if (!read_messages(json_object_get(root, "messages"), &chat, ret_refusal) || !read_tools(root, &chat, ret_refusal))
        return false;
    *ret_chat = chat;
    return true;
}
