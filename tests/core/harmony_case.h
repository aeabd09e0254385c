/* tests/core/harmony_case.h: a conversation of tests/vectors/harmony_render.jsonl as the renderer's structs. */
#ifndef NIB_TESTS_HARMONY_CASE_H
#define NIB_TESTS_HARMONY_CASE_H

#include "core/harmony.h"
#include "tests/harness.h"

#define CASE_ITEMS 64 /* messages, tools, parts of one case */

struct nib_case {
    struct nib_harmony_conversation conv;
    struct nib_harmony_system system;
    struct nib_harmony_developer developer;
    struct nib_harmony_tool tools[CASE_ITEMS];
    struct nib_harmony_format formats[CASE_ITEMS];
    struct nib_harmony_message messages[CASE_ITEMS];
    struct nib_span channels[CASE_ITEMS];
    struct nib_span parts[2 * CASE_ITEMS];
    size_t parts_count;
};

static inline struct nib_span case_text(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return nib_span_of(json_string_value(value), json_string_length(value));
}

/* An absent key keeps the default, null takes it away. */
static inline void case_field(struct nib_span *field, const json_t *object, const char *key)
{
    if (json_object_get(object, key))
        *field = case_text(object, key);
}

static inline void case_system(struct nib_case *c, const json_t *in)
{
    struct nib_harmony_system *s = &c->system;
    const json_t *channels = json_object_get(in, "channels");
    const char *effort = json_string_value(json_object_get(in, "effort"));
    nib_harmony_system_init(s);
    case_field(&s->identity, in, "identity");
    case_field(&s->cutoff, in, "cutoff");
    case_field(&s->date, in, "date");
    s->browser = json_is_true(json_object_get(in, "browser"));
    s->python = json_is_true(json_object_get(in, "python"));
    if (json_object_get(in, "effort"))
        s->effort = !effort                       ? NIB_EFFORT_NONE
                    : strcmp(effort, "low") == 0  ? NIB_EFFORT_LOW
                    : strcmp(effort, "high") == 0 ? NIB_EFFORT_HIGH
                                                  : NIB_EFFORT_MEDIUM;
    if (channels) {
        for (size_t i = 0; i < json_array_size(channels); i++) {
            const json_t *name = json_array_get(channels, i);
            c->channels[i] = nib_span_of(json_string_value(name), json_string_length(name));
        }
        s->channels = c->channels;
        s->channels_count = json_array_size(channels);
        s->channel_required = !json_is_false(json_object_get(in, "channel_required"));
    }
    c->conv.system = s;
}

static inline void case_developer(struct nib_case *c, const json_t *in)
{
    const json_t *tools = json_object_get(in, "tools"), *formats = json_object_get(in, "formats");
    c->developer = (struct nib_harmony_developer){.instructions = case_text(in, "instructions"),
                                                  .tools = c->tools,
                                                  .tools_count = json_array_size(tools),
                                                  .formats = c->formats,
                                                  .formats_count = json_array_size(formats)};
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        c->tools[i] = (struct nib_harmony_tool){case_text(tool, "name"), case_text(tool, "description"),
                                                json_object_get(tool, "parameters")};
    }
    for (size_t i = 0; i < json_array_size(formats); i++) {
        const json_t *f = json_array_get(formats, i);
        c->formats[i] = (struct nib_harmony_format){case_text(f, "name"), case_text(f, "description"),
                                                    json_object_get(f, "schema")};
    }
    c->conv.developer = &c->developer;
}

static inline enum nib_harmony_role case_role(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return strcmp(role, "user") == 0        ? NIB_ROLE_USER
           : strcmp(role, "assistant") == 0 ? NIB_ROLE_ASSISTANT
           : strcmp(role, "developer") == 0 ? NIB_ROLE_DEVELOPER
                                            : NIB_ROLE_TOOL;
}

static inline void case_message(struct nib_case *c, const json_t *in)
{
    const json_t *parts = json_object_get(in, "parts");
    ck_assert_uint_lt(c->conv.messages_count, CASE_ITEMS);
    ck_assert_uint_le(c->parts_count + json_array_size(parts), 2 * CASE_ITEMS);
    c->messages[c->conv.messages_count++] =
        (struct nib_harmony_message){.role = case_role(in),
                                     .name = case_text(in, "name"),
                                     .recipient = case_text(in, "recipient"),
                                     .channel = case_text(in, "channel"),
                                     .content_type = case_text(in, "content_type"),
                                     .constrain = json_is_true(json_object_get(in, "constrain")),
                                     .parts = c->parts + c->parts_count,
                                     .parts_count = json_array_size(parts)};
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        c->parts[c->parts_count++] = nib_span_of(json_string_value(part), json_string_length(part));
    }
}

/* Borrows everything from `in`. */
static inline void case_read(struct nib_case *c, const json_t *in)
{
    const json_t *system = json_object_get(in, "system"), *developer = json_object_get(in, "developer");
    const json_t *messages = json_object_get(in, "messages");
    const char *tail = json_string_value(json_object_get(in, "tail"));
    memset(c, 0, sizeof *c);
    c->conv.messages = c->messages;
    c->conv.keep_analysis = json_is_true(json_object_get(in, "keep_analysis"));
    c->conv.tail = !tail ? NIB_TAIL_COMPLETION : strcmp(tail, "none") == 0 ? NIB_TAIL_NONE : NIB_TAIL_TRAINING;
    if (system)
        case_system(c, system);
    if (developer)
        case_developer(c, developer);
    for (size_t i = 0; i < json_array_size(messages); i++)
        case_message(c, json_array_get(messages, i));
}

#endif
