/* appliance/config_keys.c: the table of configuration keys, and how one value is read.
 *
 * Owns nothing but constants. Limits: the ranges in the table. Boot only. Fails with a sentence
 * that names the key and what is allowed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "appliance/config.h"
#include "core/model.h"

#define AT(field) offsetof(struct nib_config, field)
#define MIB       1048576.0

static const struct nib_config_key keys[] = {
    {"image.path", NIB_CFG_STRING, AT(image_path), 1, 255, "/var/lib/nibbled/model.nib", NULL,
     "The packed model image (nibble pack)."},
    {"image.public_key", NIB_CFG_STRING, AT(image_key), 0, 64, "\"\"", NULL,
     "Ed25519 public key in 64 hex digits. When set, only an image signed by it boots."},
    {"model.name", NIB_CFG_STRING, AT(model_name), 0, 64, "\"\"", NULL,
     "Name clients see in /v1/models. Empty: the name of the image's shape."},
    {"engine.device", NIB_CFG_CHOICE, AT(device), 0, 2, "auto", "auto|cpu|gpu",
     "What runs the model. auto: the GPU when there is one, else the CPU, and the journal says why.\n"
     "gpu: nothing but the GPU."},
    {"engine.row", NIB_CFG_STRING, AT(row), 0, 31, "\"\"", NULL,
     "Row of the capability table to run, by name. Empty: the best that this machine satisfies\n"
     "and whose kernels pass their self-test; a named row is never replaced."},
    {"engine.threads", NIB_CFG_UINT, AT(threads), 0, NIB_MAX_THREADS, "0", NULL,
     "CPU worker threads. 0: one for each core this process may use."},
    {"engine.ctx_tokens", NIB_CFG_UINT, AT(ctx_tokens), 0, NIB_MAX_CTX_TOKENS, "0", NULL,
     "Longest prompt plus answer. 0: the largest that fits in memory."},
    {"engine.slots", NIB_CFG_UINT, AT(slots), 0, NIB_MAX_SLOTS, "0", NULL,
     "Requests that run at once. 0: the row's default."},
    {"engine.step_rows", NIB_CFG_UINT, AT(step_rows), 0, NIB_MAX_STEP_ROWS, "0", NULL,
     "Tokens of one step. 0: the row's default."},
    {"memory.limit_mib", NIB_CFG_UINT, AT(memory_mib), 0, 16777216, "0", NULL,
     "Plan as if the memory were this small, in MiB; of a GPU the driver's part is in it. 0: what the machine has."},
    {"memory.kv", NIB_CFG_CHOICE, AT(kv), 0, NIB_KV_FORMS - 1, "bf16", "bf16|fp8",
     "How keys and values of the context are kept. fp8: E4M3 with a scale for every 32, nearly half the bytes, so "
     "that\n"
     "nearly twice the tokens fit; answers then differ a little. On a GPU steps are somewhat slower."},
    {"memory.lock", NIB_CFG_BOOL, AT(memory_lock), 0, 1, "false", NULL,
     "Lock all memory at boot (mlockall), so that nothing of it is ever paged out."},
    {"socket.path", NIB_CFG_STRING, AT(socket_path), 1, 107, "/run/nibbled/nibbled.sock", NULL,
     "The UNIX socket. Unused when systemd passes one."},
    {"socket.mode", NIB_CFG_MODE, AT(socket_mode), 0, 0777, "0660", NULL, "File mode of the socket, octal."},
    {"socket.group", NIB_CFG_STRING, AT(socket_group), 0, 31, "\"\"", NULL,
     "Group of the socket, by name. Empty: the daemon's own."},
    {"limits.connections", NIB_CFG_UINT, AT(connections), 1, NIB_MAX_CONNS, "64", NULL, "Open client connections."},
    {"limits.queue", NIB_CFG_UINT, AT(queue), 0, NIB_MAX_QUEUE, "32", NULL,
     "Requests that may wait for a slot; one more is answered with 429."},
    {"limits.bodies", NIB_CFG_UINT, AT(bodies), 1, 64, "8", NULL,
     "Bodies of more than 16 KiB being received at once; one more is answered with 503."},
    {"limits.body_bytes", NIB_CFG_UINT, AT(body_bytes), 1024, NIB_MAX_BODY_BYTES, "4194304", NULL,
     "Longest request body; a longer one is answered with 413."},
    {"limits.answer_bytes", NIB_CFG_UINT, AT(answer_bytes), 16384, 64 * MIB, "1048576", NULL,
     "Buffer of one answer. A stream whose client falls behind by this much is cut;\n"
     "an answer that is not streamed ends with \"length\" when it is full."},
    {"limits.json_bytes", NIB_CFG_UINT, AT(json_bytes), MIB, 1024 * MIB, "67108864", NULL,
     "Memory for parsing one request body; what needs more is answered with 413."},
    {"time.head_ms_max", NIB_CFG_UINT, AT(head_ms_max), 10, 600000, "5000", NULL,
     "From the request line to the end of the headers."},
    {"time.body_ms_max", NIB_CFG_UINT, AT(body_ms_max), 10, 600000, "30000", NULL,
     "From the headers to the end of the body."},
    {"time.idle_ms_max", NIB_CFG_UINT, AT(idle_ms_max), 10, 3600000, "30000", NULL,
     "Between two requests of one connection."},
    {"time.write_ms_max", NIB_CFG_UINT, AT(write_ms_max), 10, 600000, "10000", NULL,
     "How long a client may leave output unread."},
    {"time.stall_ms_max", NIB_CFG_UINT, AT(stall_ms_max), 10, 3600000, "60000", NULL,
     "Without a finished step for this long while requests run, /health says stalled (503)."},
    {"time.drain_ms_max", NIB_CFG_UINT, AT(drain_ms_max), 0, 3600000, "30000", NULL,
     "On SIGTERM, how long running requests may still take."},
    {"time.step_ms_max", NIB_CFG_UINT, AT(step_ms_max), 100, 600000, "20000", NULL,
     "A GPU that takes longer for one step counts as lost: requests get an error, the daemon ends to be restarted."},
    {"time.load_ms_max", NIB_CFG_UINT, AT(load_ms_max), 1000, 3600000, "180000", NULL,
     "While loading, how long nothing may move before the daemon ends to be restarted."},
    {"time.gap_ratio", NIB_CFG_REAL, AT(gap_ratio), 0, 100, "2.0", NULL,
     "Beside answers a long prompt may make a step so many times as long; measured while running. Where not even\n"
     "few rows fit, it moves in full steps with a rest between them. 0: no bound, the fastest prompts."},
    {"defaults.temperature", NIB_CFG_REAL, AT(temperature), 0, 2, "1.0", NULL,
     "Used when a request does not say. 1.0 and 1.0 are what the model was made for."},
    {"defaults.top_p", NIB_CFG_REAL, AT(top_p), 0.000001, 1, "1.0", NULL, "Used when a request does not say."},
    {"defaults.reasoning_effort", NIB_CFG_CHOICE, AT(effort), 0, 2, "medium", "low|medium|high",
     "Used when a request does not say."},
    {"defaults.answer_tokens", NIB_CFG_UINT, AT(answer_tokens), 0, NIB_MAX_CTX_TOKENS, "0", NULL,
     "max_tokens of a request that gives none. 0: what the context leaves."},
    {"defaults.date", NIB_CFG_STRING, AT(date), 0, 10, "\"\"", NULL,
     "\"Current date\" of the system message, YYYY-MM-DD. Empty: no such line."},
    {"prefix.reuse", NIB_CFG_BOOL, AT(prefix_reuse), 0, 1, "true", NULL,
     "Keep what prompts have computed where KV memory is free, so that a prompt which begins as an\n"
     "earlier one of the same user computes only what is new. Answers are the same, bit for bit."},
    {"prefix.share", NIB_CFG_BOOL, AT(prefix_share), 0, 1, "false", NULL,
     "One user's prompts may serve another's. Then a user who guesses how another's prompt begins can\n"
     "see from cached_tokens, and from the time to the first token, that the guess was right."},
    {"lookup.draft_tokens", NIB_CFG_UINT, AT(draft_tokens), 0, NIB_MAX_DRAFT_TOKENS, "0", NULL,
     "Speculative decoding by prompt lookup: of an answer that repeats what stands in its prompt or in itself, up to "
     "so\n"
     "many tokens are guessed and verified in one step, where measurements say that this is faster. Answers are the\n"
     "same, bit for bit. 0: none."},
    {"log.requests", NIB_CFG_BOOL, AT(log_requests), 0, 1, "true", NULL,
     "One line for each request. Never any of its text."},
};

#define RULE(field) offsetof(struct nib_peer_rule, field)
static const struct nib_config_key peer_keys[] = {
    {"requests", NIB_CFG_UINT, RULE(requests), 0, NIB_MAX_SLOTS + NIB_MAX_QUEUE, "0", NULL, ""},
    {"queue", NIB_CFG_UINT, RULE(queue), 0, NIB_MAX_QUEUE, "0", NULL, ""},
    {"ctx_tokens", NIB_CFG_UINT, RULE(ctx_tokens), 0, NIB_MAX_CTX_TOKENS, "0", NULL, ""},
    {"deny", NIB_CFG_BOOL, RULE(deny), 0, 1, "false", NULL, ""},
};

static const char peers_doc[] =
    "# Who may connect, beyond the socket's mode and group. An empty list lets everyone in. Else "
    "the\n"
    "# first rule that matches decides, and a client that no rule matches is refused. A rule names "
    "one\n"
    "# of user, group (names), uid, gid (numbers) or any: true, and may add\n"
    "#   deny: true          refuse\n"
    "#   requests: N         requests of one user at once, running or waiting (0: no own limit)\n"
    "#   queue: N            of them, waiting for a slot (0: no own limit)\n"
    "#   ctx_tokens: N       longest prompt plus answer (0: no own limit)\n"
    "# peers:\n"
    "#   - uid: 0\n"
    "#   - group: nibbled\n"
    "#     requests: 4\n"
    "peers: []\n";

const struct nib_config_key *nib_config_keys(size_t *ret_count)
{
    *ret_count = sizeof keys / sizeof keys[0];
    return keys;
}

const struct nib_config_key *nib_config_peer_key(const char *name)
{
    for (size_t i = 0; i < sizeof peer_keys / sizeof peer_keys[0]; i++)
        if (!strcmp(name, peer_keys[i].key))
            return &peer_keys[i];
    return NULL;
}

/* Whole decimal numbers only: no sign, no space, no exponent. */
static bool read_uint(const char *text, int base, uint64_t *ret)
{
    size_t n = strlen(text);
    const char *digits = base == 8 ? "01234567" : "0123456789";
    if (n == 0 || n > 18 || strspn(text, digits) != n)
        return false;
    *ret = strtoull(text, NULL, base);
    return true;
}

static enum nib_err set_uint(const struct nib_config_key *key, const char *text, void *at, struct nib_msg *msg)
{
    uint64_t v;
    bool mode = key->type == NIB_CFG_MODE;
    if (!read_uint(text, mode ? 8 : 10, &v) || (double)v < key->min || (double)v > key->max) {
        if (mode)
            return nib_fail(msg, NIB_E_ARG, "%s must be an octal mode from %04o to %04o", key->key, (unsigned)key->min,
                            (unsigned)key->max);
        return nib_fail(msg, NIB_E_ARG, "%s must be a whole number from %.0f to %.0f", key->key, key->min, key->max);
    }
    memcpy(at, &v, sizeof v);
    return NIB_OK;
}

static enum nib_err set_real(const struct nib_config_key *key, const char *text, void *at, struct nib_msg *msg)
{
    char *end = NULL;
    double v = strtod(text, &end);
    bool plain = text[0] != '\0' && strspn(text, "0123456789.eE-+") == strlen(text);
    if (!plain || *end != '\0' || !isfinite(v) || v < key->min || v > key->max)
        return nib_fail(msg, NIB_E_ARG, "%s must be a number from %g to %g", key->key, key->min, key->max);
    memcpy(at, &v, sizeof v);
    return NIB_OK;
}

static enum nib_err set_choice(const struct nib_config_key *key, const char *text, void *at, struct nib_msg *msg)
{
    uint64_t index = 0;
    size_t n = strlen(text);
    for (const char *c = key->choices; *c; index++) {
        size_t len = strcspn(c, "|");
        if (len == n && !memcmp(c, text, n)) {
            memcpy(at, &index, sizeof index);
            return NIB_OK;
        }
        c += len + (c[len] == '|');
    }
    return nib_fail(msg, NIB_E_ARG, "%s must be one of %s", key->key, key->choices);
}

enum nib_err nib_config_set(const struct nib_config_key *key, const char *value, size_t bytes, bool quoted, void *base,
                            struct nib_msg *msg)
{
    char text[NIB_CONFIG_STRING_BYTES];
    uint8_t *at = (uint8_t *)base + key->offset;
    if (memchr(value, '\0', bytes))
        return nib_fail(msg, NIB_E_ARG, "%s holds a NUL byte", key->key);
    if (key->type == NIB_CFG_STRING && ((double)bytes < key->min || (double)bytes > key->max || bytes >= sizeof text))
        return nib_fail(msg, NIB_E_ARG, "%s must be text of %.0f to %.0f bytes, and has %zu", key->key, key->min,
                        key->max, bytes);
    if (bytes >= sizeof text)
        bytes = sizeof text - 1;
    memcpy(text, value, bytes);
    text[bytes] = '\0';
    if (key->type == NIB_CFG_STRING) {
        memcpy(at, text, bytes + 1);
        return NIB_OK;
    }
    if (quoted && key->type != NIB_CFG_MODE && key->type != NIB_CFG_CHOICE)
        text[0] = '\0'; /* a quoted scalar is text, never a number or a truth value */
    switch (key->type) {
    case NIB_CFG_REAL:
        return set_real(key, text, at, msg);
    case NIB_CFG_CHOICE:
        return set_choice(key, text, at, msg);
    case NIB_CFG_BOOL: {
        bool v = !strcmp(text, "true");
        if (!v && strcmp(text, "false") != 0)
            return nib_fail(msg, NIB_E_ARG, "%s must be true or false", key->key);
        memcpy(at, &v, sizeof v);
        return NIB_OK;
    }
    default:
        return set_uint(key, text, at, msg);
    }
}

void nib_config_init(struct nib_config *ret_config)
{
    memset(ret_config, 0, sizeof *ret_config);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const char *v = keys[i].initial;
        bool quoted = v[0] == '"';
        struct nib_msg msg;
        enum nib_err err =
            nib_config_set(&keys[i], quoted ? v + 1 : v, strlen(v) - (quoted ? 2 : 0), quoted, ret_config, &msg);
        NIB_MUST(err == NIB_OK);
    }
}

static void print_range(FILE *file, const struct nib_config_key *key)
{
    switch (key->type) {
    case NIB_CFG_CHOICE:
        (void)fprintf(file, "  # one of %s\n", key->choices);
        break;
    case NIB_CFG_BOOL:
        (void)fprintf(file, "  # true or false\n");
        break;
    case NIB_CFG_MODE:
        (void)fprintf(file, "  # %04o to %04o\n", (unsigned)key->min, (unsigned)key->max);
        break;
    case NIB_CFG_STRING:
        (void)fprintf(file, "  # %.0f to %.0f bytes\n", key->min, key->max);
        break;
    default:
        (void)fprintf(file, "  # %.*g to %.*g\n", 10, key->min, 10, key->max);
    }
}

void nib_config_print(FILE *file)
{
    (void)fputs("# nibbled's configuration: every key, at its default. A key left out keeps its\n"
                "# default; an unknown key or a value outside its range stops the boot.\n",
                file);
    const char *section = "";
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const char *dot = strchr(keys[i].key, '.');
        size_t len = (size_t)(dot - keys[i].key);
        if (strncmp(section, keys[i].key, len + 1) != 0)
            (void)fprintf(file, "\n%.*s:\n", (int)len, keys[i].key);
        section = keys[i].key;
        for (const char *doc = keys[i].doc; *doc;) {
            size_t line = strcspn(doc, "\n");
            (void)fprintf(file, "  # %.*s\n", (int)line, doc);
            doc += line + (doc[line] == '\n');
        }
        print_range(file, &keys[i]);
        (void)fprintf(file, "  %s: %s\n", dot + 1, keys[i].initial);
    }
    (void)fprintf(file, "\n%s", peers_doc);
}
