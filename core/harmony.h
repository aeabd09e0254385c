/* core/harmony.h: a conversation to token ids, in OpenAI's harmony format.
 *
 * The ids are those of openai-harmony 0.0.8 (`render_conversation_for_completion`), token for token: text between two
 * special tokens is encoded in the same separate runs. Special tokens come only from this renderer; bytes of a span
 * are always encoded as ordinary text, so no field can make one.
 *
 * Nothing is allocated and nothing is kept: the conversation is read, ids and scratch are written. Any thread that
 * owns scratch and ids for the call. The parser of what the model answers is core/harmony_parse.h. */
#ifndef NIB_CORE_HARMONY_H
#define NIB_CORE_HARMONY_H

#include <jansson.h>
#include <stdint.h>

#include "core/err.h"
#include "core/span.h"

struct nib_tokenizer;

#define NIB_HARMONY_IDENTITY "You are ChatGPT, a large language model trained by OpenAI."
#define NIB_HARMONY_CUTOFF   "2024-06"

/* Author of a message in the history. The API's `system` and `developer` roles are both DEVELOPER. */
enum nib_harmony_role {
    NIB_ROLE_USER,
    NIB_ROLE_ASSISTANT,
    NIB_ROLE_DEVELOPER, /* its text becomes "# Instructions", a blank line, the text */
    NIB_ROLE_TOOL       /* name is required and is what is rendered: "functions.NAME"; recipient "assistant" */
};

enum nib_harmony_effort {
    NIB_EFFORT_NONE, /* no "Reasoning:" line */
    NIB_EFFORT_LOW,
    NIB_EFFORT_MEDIUM,
    NIB_EFFORT_HIGH
};

/* One message. An absent span (ptr NULL) is not rendered. A header field is at most NIB_MAX_RECIPIENT_BYTES. */
struct nib_harmony_message {
    enum nib_harmony_role role;
    struct nib_span name;         /* of the author; absent for most */
    struct nib_span recipient;    /* "functions.NAME" of a call, which then ends with <|call|>; "all": not shown */
    struct nib_span channel;      /* "analysis", "commentary", "final"; absent for user messages */
    struct nib_span content_type; /* "json"; absent for most */
    bool constrain;               /* <|constrain|> before content_type, as the model writes it for tool calls */
    const struct nib_span *parts; /* [parts_count] text parts of the content, each encoded on its own */
    size_t parts_count;
};

/* A function tool. `description` absent or empty: no comment. `parameters` NULL or JSON null: takes no arguments. */
struct nib_harmony_tool {
    struct nib_span name;
    struct nib_span description;
    const json_t *parameters; /* JSON schema, borrowed */
};

/* A named schema the final answer should follow; rendered at the end of the developer message. */
struct nib_harmony_format {
    struct nib_span name;
    struct nib_span description; /* absent or empty: no comment */
    const json_t *schema;        /* borrowed, not NULL */
};

/* The system message. nib_harmony_system_init gives openai-harmony's defaults. */
struct nib_harmony_system {
    struct nib_span identity; /* first line; absent: no line */
    struct nib_span cutoff;   /* "Knowledge cutoff: "; absent: no line */
    struct nib_span date;     /* "Current date: ", YYYY-MM-DD; absent: no line, prompts stay cacheable */
    enum nib_harmony_effort effort;
    bool browser;                    /* the built-in browser tool's text */
    bool python;                     /* the built-in python tool's text */
    const struct nib_span *channels; /* [channels_count] "# Valid channels:"; 0: no section */
    size_t channels_count;
    bool channel_required; /* "Channel must be included for every message." */
};

/* The developer message: rendered when the pointer in the conversation is not NULL. */
struct nib_harmony_developer {
    struct nib_span instructions; /* absent: no section */
    const struct nib_harmony_tool *tools;
    size_t tools_count; /* at most NIB_MAX_TOOLS */
    const struct nib_harmony_format *formats;
    size_t formats_count;
};

/* What follows the last message. */
enum nib_harmony_tail {
    NIB_TAIL_COMPLETION, /* <|start|>assistant: the model answers next */
    NIB_TAIL_NONE,
    NIB_TAIL_TRAINING /* a last assistant message on `final` ends with <|return|>, not <|end|> */
};

/* Unless keep_analysis is set, analysis messages before the first `final` are left out when the last assistant message
 * is on `final`: a finished answer is kept, its reasoning is not; a tool loop that still goes on keeps all. */
struct nib_harmony_conversation {
    const struct nib_harmony_system *system;       /* NULL: no system message */
    const struct nib_harmony_developer *developer; /* NULL: no developer message */
    const struct nib_harmony_message *messages;    /* [messages_count], at most NIB_MAX_MESSAGES */
    size_t messages_count;
    bool keep_analysis;
    enum nib_harmony_tail tail;
};

/* Memory the renderer may write, all the caller's. A text run is what stands between two special tokens; the
 * developer message with its tool types is usually the longest. */
struct nib_harmony_scratch {
    char *text; /* [text_bytes] system, developer and header runs are put together here */
    size_t text_bytes;
    void *bpe; /* [bpe_bytes] the tokenizer's: nib_tokenizer_scratch_bytes of the longest run */
    size_t bpe_bytes;
};

/* The defaults: identity, cutoff, medium effort, channels analysis, commentary, final, required; no date, no tools. */
void nib_harmony_system_init(struct nib_harmony_system *system);

/* Least ids_max: one character may be four tokens. */
#define NIB_HARMONY_IDS_MIN 4

/* Renders `conv` to ids[0..*ret_n). On failure *ret_n is untouched and ids holds rubbish. NIB_E_LIMIT: too many
 * messages, tools or header bytes, a schema nested too deeply, a text run larger than scratch, or more tokens than
 * ids_max; the sentence has both numbers. NIB_E_ARG: a tool message without a name. */
NIB_CHECKED enum nib_err nib_harmony_render(const struct nib_tokenizer *tokenizer, struct nib_harmony_scratch scratch,
                                            const struct nib_harmony_conversation *conv, uint32_t *ids, size_t ids_max,
                                            size_t *ret_n, struct nib_msg *msg);

#endif
