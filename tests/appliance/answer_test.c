/* Answers: scripted tokens through harmony's parser to the JSON and the event stream that clients
 * get; both forms must say the same. */
#include "appliance/answer.h"
#include "appliance/json_in.h"
#include "core/vocab.h"
#include "tests/harness.h"

#define V          288
#define S          256
#define TEXT_BYTES (1 << 20)

static const struct nib_tokenizer *tok;
static struct nib_params params;
static struct nib_answer answer;
static char buffer[1 << 18];
static char text[TEXT_BYTES];
static uint8_t pool[1 << 22] __attribute__((aligned(64)));

static void open_tokenizer(void)
{
    static uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
    static uint8_t memory[1 << 20] __attribute__((aligned(64)));
    struct nib_arena arena;
    struct nib_msg msg;
    size_t bytes;
    ck_assert_int_eq(nib_vocab_build_bytelevel(V, S, blob, sizeof blob, &bytes, &msg), NIB_OK);
    nib_arena_init(&arena, memory, sizeof memory);
    ck_assert_msg(nib_tokenizer_open(&arena, blob, bytes, &tok, &msg) == NIB_OK, "%s", msg.text);
    nib_json_pool_init(pool, sizeof pool);
}

static void begin(bool chat, bool stream, size_t buf_bytes)
{
    if (!tok)
        open_tokenizer();
    params.stream = stream;
    ck_assert_uint_le(buf_bytes, sizeof buffer);
    struct nib_answer_spec spec = {.tokenizer = tok,
                                   .buf = buffer,
                                   .buf_bytes = buf_bytes,
                                   .chat = chat,
                                   .params = &params,
                                   .model = "m",
                                   .id = 0xabc,
                                   .created = 5,
                                   .prompt_tokens = 10};
    nib_answer_init(&answer, &spec);
}

static void defaults(void)
{
    memset(&params, 0, sizeof params);
    nib_stop_init(&params.stop);
    params.completion_logprobs = -1;
}

static size_t drained; /* bytes of `text` */

static void drain(void)
{
    size_t n;
    while ((n = nib_answer_read(&answer, text + drained, 7)) > 0)
        drained += n;
    text[drained] = '\0';
}

static void token(uint32_t id)
{
    struct nib_sampled s = {.token = id, .logprob = -0.5f, .top_count = 2};
    s.top[0] = (struct nib_top){id, -0.5f};
    s.top[1] = (struct nib_top){'z', -1.5f};
    nib_answer_token(&answer, &s);
    if (answer.stream)
        drain();
}

/* Bytes are tokens; "<name>" is a special one. */
static void say(const char *script)
{
    static const struct {
        const char *name;
        uint32_t special;
    } names[] = {{"<start>", NIB_TOK_START},        {"<end>", NIB_TOK_END},       {"<message>", NIB_TOK_MESSAGE},
                 {"<channel>", NIB_TOK_CHANNEL},    {"<return>", NIB_TOK_RETURN}, {"<call>", NIB_TOK_CALL},
                 {"<constrain>", NIB_TOK_CONSTRAIN}};
    while (*script) {
        size_t i = 0;
        while (i < 7 && strncmp(script, names[i].name, strlen(names[i].name)) != 0)
            i++;
        token(i < 7 ? S + names[i].special : (uint8_t)*script);
        script += i < 7 ? strlen(names[i].name) : 1;
    }
}

static json_t *parsed(const char *from, size_t len)
{
    json_t *root = NULL;
    struct nib_msg msg;
    ck_assert_msg(nib_json_parse(from, len, &root, &msg) == NIB_OK, "%s in %.*s", msg.text, (int)len, from);
    return root;
}

/* The whole response, parsed. */
static json_t *finish_whole(bool cut)
{
    nib_answer_end(&answer, cut);
    drained = 0;
    drain();
    ck_assert_uint_eq(drained, answer.total_bytes);
    return parsed(text, drained);
}

struct heard {
    char content[8192], reasoning[8192], calls[8192];
    char finish[32];
    int events;
    bool done;
};

static void add(char *to, const json_t *from)
{
    if (json_is_string(from))
        (void)strcat(to, json_string_value(from));
}

static void hear_call(struct heard *h, const json_t *call)
{
    const json_t *f = json_object_get(call, "function");
    if (json_object_get(f, "name")) {
        ck_assert(json_object_get(call, "id") && json_object_get(call, "type"));
        (void)sprintf(h->calls + strlen(h->calls), "%s%d:%s:", h->calls[0] ? "|" : "",
                      (int)json_integer_value(json_object_get(call, "index")),
                      json_string_value(json_object_get(f, "name")));
    }
    add(h->calls, json_object_get(f, "arguments"));
}

static void hear_stream(struct heard *h)
{
    memset(h, 0, sizeof *h);
    for (char *line = text; *line;) {
        char *end = strstr(line, "\n\n");
        ck_assert_ptr_nonnull(end);
        ck_assert_int_eq(strncmp(line, "data: ", 6), 0);
        ck_assert(!h->done);
        if (!strncmp(line + 6, "[DONE]", 6)) {
            h->done = true;
        } else {
            json_t *root = parsed(line + 6, (size_t)(end - line) - 6);
            const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
            const json_t *delta = json_object_get(choice, "delta");
            h->events++;
            add(h->content, json_object_get(delta, "content"));
            add(h->reasoning, json_object_get(delta, "reasoning"));
            ck_assert(json_equal(json_object_get(delta, "reasoning"), json_object_get(delta, "reasoning_content")) ||
                      !json_object_get(delta, "reasoning"));
            const json_t *calls = json_object_get(delta, "tool_calls");
            for (size_t i = 0; i < json_array_size(calls); i++)
                hear_call(h, json_array_get(calls, i));
            add(h->finish, json_object_get(choice, "finish_reason"));
        }
        line = end + 2;
    }
}

static void hear_whole(struct heard *h, const json_t *root)
{
    memset(h, 0, sizeof *h);
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *m = json_object_get(choice, "message");
    add(h->content, json_object_get(m, "content"));
    add(h->reasoning, json_object_get(m, "reasoning"));
    const json_t *calls = json_object_get(m, "tool_calls");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *f = json_object_get(json_array_get(calls, i), "function");
        (void)sprintf(h->calls + strlen(h->calls), "%s%zu:%s:%s", i ? "|" : "", i,
                      json_string_value(json_object_get(f, "name")),
                      json_string_value(json_object_get(f, "arguments")));
    }
    add(h->finish, json_object_get(choice, "finish_reason"));
    ck_assert((json_array_size(calls) > 0 && !h->content[0]) == json_is_null(json_object_get(m, "content")));
}

static struct heard last;

/* One script, both ways; returns what the client hears. */
static const struct heard *both(const char *script, bool cut)
{
    static struct heard whole;
    begin(true, false, sizeof buffer);
    say(script);
    hear_whole(&whole, finish_whole(cut));
    begin(true, true, sizeof buffer);
    drained = 0;
    say(script);
    nib_answer_end(&answer, cut);
    drain();
    hear_stream(&last);
    ck_assert(last.done);
    ck_assert_str_eq(whole.content, last.content);
    ck_assert_str_eq(whole.reasoning, last.reasoning);
    ck_assert_str_eq(whole.calls, last.calls);
    ck_assert_str_eq(whole.finish, last.finish);
    return &last;
}

START_TEST(test_reasoning_and_content)
{
    defaults();
    const struct heard *h = both("<channel>analysis<message>Think \"hard\".\n<end><start>assistant"
                                 "<channel>final<message>Hi \xc3\xa9!<return>",
                                 false);
    ck_assert_str_eq(h->reasoning, "Think \"hard\".\n");
    ck_assert_str_eq(h->content, "Hi \xc3\xa9!");
    ck_assert_str_eq(h->finish, "stop");
    ck_assert(answer.turn_over);
    ck_assert_uint_gt(answer.reasoning_tokens, strlen(h->reasoning));
    ck_assert_uint_lt(answer.reasoning_tokens, answer.answer_tokens);
}
END_TEST

START_TEST(test_tool_call)
{
    defaults();
    const struct heard *h = both("<channel>analysis<message>Ask.<end><start>assistant<channel>commentary "
                                 "to=functions.get_x <constrain>json<message>{\"a\":\"b\\n\"}<call>",
                                 false);
    ck_assert_str_eq(h->calls, "0:get_x:{\"a\":\"b\\n\"}");
    ck_assert_str_eq(h->finish, "tool_calls");
    ck_assert_str_eq(h->content, "");
}
END_TEST

START_TEST(test_preamble_and_two_calls)
{
    defaults();
    const struct heard *h =
        both("<channel>commentary<message>I will look.<end><start>assistant<channel>commentary "
             "to=functions.a<message>{}<end><start>assistant<channel>commentary to=functions.b<message>"
             "[1]<call>",
             false);
    ck_assert_str_eq(h->content, "I will look.");
    ck_assert_str_eq(h->calls, "0:a:{}|1:b:[1]");
    ck_assert_str_eq(h->finish, "tool_calls");
}
END_TEST

START_TEST(test_cut_anywhere)
{
    static const char script[] = "<channel>analysis<message>T\xc3\xa9<end><start>assistant<channel>"
                                 "commentary to=functions.f <constrain>json<message>{\"k\":1}";
    defaults();
    for (size_t n = 0; n < sizeof script; n++) {
        char part[sizeof script];
        memcpy(part, script, n);
        part[n] = '\0';
        if (strchr(part, '<') && !strchr(strrchr(part, '<'), '>'))
            continue; /* inside the name of a special token */
        ck_assert_str_eq(both(part, true)->finish, "length");
        ck_assert_ptr_null(strstr(text, "<|"));
    }
}
END_TEST

START_TEST(test_stop_string)
{
    defaults();
    ck_assert(nib_stop_add(&params.stop, NIB_SPAN("STOP")));
    const struct heard *h = both("<channel>analysis<message>STOP is thought<end><start>assistant<channel>final<message>"
                                 "one STtwo STOP three<return>",
                                 false);
    ck_assert_str_eq(h->content, "one STtwo ");
    ck_assert_str_eq(h->reasoning, "STOP is thought");
    ck_assert_str_eq(h->finish, "stop");
    ck_assert(answer.stop_hit);
    h = both("<channel>final<message>half STO<return>", false);
    ck_assert_str_eq(h->content, "half STO");
}
END_TEST

START_TEST(test_logprobs_are_of_content)
{
    defaults();
    params.logprobs = true;
    params.top_logprobs = 2;
    begin(true, false, sizeof buffer);
    say("<channel>analysis<message>no<end><start>assistant<channel>final<message>a\xc3\xa9<return>");
    json_t *root = finish_whole(false);
    const json_t *list =
        json_object_get(json_object_get(json_array_get(json_object_get(root, "choices"), 0), "logprobs"), "content");
    ck_assert_uint_eq(json_array_size(list), 3); /* a, and the two bytes of e acute */
    const json_t *first = json_array_get(list, 0);
    ck_assert_str_eq(json_string_value(json_object_get(first, "token")), "a");
    ck_assert_uint_eq(json_array_size(json_object_get(first, "top_logprobs")), 2);
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(list, 1), "token")), "bytes:\\xc3");
}
END_TEST

START_TEST(test_completion)
{
    defaults();
    params.completion_logprobs = 1;
    begin(false, false, sizeof buffer);
    say("h\xc3\xa9!<end>?<return>");
    json_t *root = finish_whole(false);
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(choice, "text")), "h\xc3\xa9!?");
    const json_t *lp = json_object_get(choice, "logprobs");
    const json_t *offsets = json_object_get(lp, "text_offset");
    ck_assert_uint_eq(json_array_size(json_object_get(lp, "tokens")), 5);
    ck_assert_int_eq(json_integer_value(json_array_get(offsets, 4)), 3); /* characters */
    const json_t *usage = json_object_get(root, "usage");
    ck_assert_int_eq(json_integer_value(json_object_get(usage, "completion_tokens")), 7);
}
END_TEST

/* Any buffer size: the whole answer is JSON, and says "length" when it did not fit. */
START_TEST(test_small_buffers)
{
    defaults();
    params.logprobs = true;
    params.top_logprobs = 2;
    bool cut_seen = false, whole_seen = false;
    for (size_t bytes = 16384; bytes < 40000; bytes += 501) {
        begin(true, false, bytes);
        say("<channel>final<message>");
        int n = 0;
        while (n < 200 && !answer.overflow) {
            say("\"x");
            n += 2;
        }
        bool full = answer.overflow;
        json_t *root = finish_whole(full);
        struct heard h;
        hear_whole(&h, root);
        ck_assert_str_eq(h.finish, full ? "length" : "stop");
        cut_seen |= full;
        whole_seen |= !full;
    }
    ck_assert(cut_seen && whole_seen);
}
END_TEST

/* A stream nobody reads fills its ring and says so; nothing is written past it. */
START_TEST(test_unread_stream)
{
    defaults();
    begin(false, true, 16384);
    buffer[16384] = 0x55;
    struct nib_sampled s = {.token = 'x'};
    for (int i = 0; i < 1000 && !answer.overflow; i++)
        nib_answer_token(&answer, &s);
    ck_assert(answer.overflow);
    ck_assert_int_eq(buffer[16384], 0x55);
    ck_assert_uint_le(nib_answer_waiting(&answer), 16384);
}
END_TEST

START_TEST(test_random_tokens)
{
    uint64_t seed = nib_test_seed();
    for (int round = 0; round < 300; round++) {
        defaults();
        params.logprobs = round % 2;
        params.top_logprobs = params.logprobs ? 2 : 0;
        if (round % 3 == 0)
            ck_assert(nib_stop_add(&params.stop, NIB_SPAN("ab")));
        char script[400];
        size_t n = 0;
        static const char *const pieces[] = {"<start>",  "<end>",  "<message>",   "<channel>",
                                             "<return>", "<call>", "<constrain>", "assistant",
                                             "analysis", "final",  "commentary",  " to=functions.f",
                                             "json",     "a",      "b",           "\xc3",
                                             "\xa9",     "\"",     "\\",          "\n"};
        for (int i = 0; i < 25; i++)
            n += (size_t)sprintf(script + n, "%s", pieces[nib_test_rand(&seed) % 20]);
        (void)both(script, nib_test_rand(&seed) % 2);
    }
}
END_TEST

NIB_SUITE(answer, test_reasoning_and_content, test_tool_call, test_preamble_and_two_calls, test_cut_anywhere,
          test_stop_string, test_logprobs_are_of_content, test_completion, test_small_buffers, test_unread_stream,
          test_random_tokens)
