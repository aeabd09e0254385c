/* Request fields: what the table says is what the decoder does. The ranges are also walked over the
 * wire (tests/wire/refuse_test.py); here every field is decoded alone. */
#include "appliance/fields.h"
#include "appliance/json_in.h"
#include "tests/harness.h"

static uint8_t memory[1 << 20] __attribute__((aligned(64)));
static struct nib_params params;
static struct nib_refusal refusal;
static const struct nib_field_defaults defaults = {.temperature = 0.7, .top_p = 0.9, .effort = 2, .vocab = 1000};

static bool decode(enum nib_api api, const char *text)
{
    json_t *root = NULL;
    struct nib_msg msg;
    memset(&refusal, 0, sizeof refusal);
    nib_json_pool_init(memory, sizeof memory);
    ck_assert_msg(nib_json_parse(text, strlen(text), &root, &msg) == NIB_OK, "%s: %s", text, msg.text);
    return nib_fields_decode(root, api, &defaults, &params, &refusal);
}

static bool decode_field(const struct nib_field *f, enum nib_api api, const char *value)
{
    char text[256];
    bool tops = !strcmp(f->name, "top_logprobs");
    (void)snprintf(text, sizeof text, "{%s\"%s\":%s}", tops ? "\"logprobs\":true," : "", f->name, value);
    return decode(api, text);
}

static void refused(const struct nib_field *f, enum nib_api api, const char *value)
{
    ck_assert_msg(!decode_field(f, api, value), "%s: %s was accepted", f->name, value);
    ck_assert_int_eq(refusal.status, 400);
    ck_assert_str_eq(refusal.param, f->name);
    ck_assert_ptr_nonnull(strstr(refusal.msg.text, f->name));
}

static void number(const struct nib_field *f, enum nib_api api, double value, bool good)
{
    char text[64];
    (void)snprintf(text, sizeof text, f->type == NIB_FIELD_INT ? "%.0f" : "%.17g", value);
    if (!good) {
        refused(f, api, text);
        ck_assert_ptr_nonnull(strstr(refusal.msg.text, "from"));
        return;
    }
    ck_assert_msg(decode_field(f, api, text), "%s: %s: %s", f->name, text, refusal.msg.text);
    const uint8_t *at = (const uint8_t *)&params + f->offset;
    if (f->type == NIB_FIELD_INT) {
        int64_t v;
        memcpy(&v, at, sizeof v);
        ck_assert_int_eq(v, (int64_t)value);
    } else {
        double v;
        memcpy(&v, at, sizeof v);
        ck_assert(v == value);
    }
}

static void check(const struct nib_field *f, enum nib_api api)
{
    static const char *const wrong[] = {"\"1\"", "[]", "{}", "\"\""};
    double step = f->type == NIB_FIELD_INT ? 1 : 0.0001;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        refused(f, api, wrong[i]);
    ck_assert(decode_field(f, api, "null"));
    if (f->type == NIB_FIELD_BOOL) {
        refused(f, api, "1");
        ck_assert(decode_field(f, api, "false"));
        ck_assert(decode_field(f, api, "true") == (f->max > 0));
        return;
    }
    refused(f, api, "true");
    number(f, api, f->min, true);
    number(f, api, f->max, true);
    number(f, api, f->min - step, false);
    number(f, api, f->max + step, false);
    if (f->type == NIB_FIELD_INT) {
        refused(f, api, "1.5");
        refused(f, api, "9223372036854775807");
        refused(f, api, "-9223372036854775808");
    } else {
        number(f, api, (f->min + f->max) / 2, true);
        refused(f, api, "1e308");
        refused(f, api, "-1e308");
        if (f->min <= 0)
            ck_assert(decode_field(f, api, "-0.0"));
    }
}

START_TEST(test_every_field)
{
    size_t count;
    const struct nib_field *fields = nib_fields(&count);
    int checked = 0;
    for (size_t i = 0; i < count; i++)
        for (int api = NIB_API_CHAT; api <= NIB_API_COMPLETIONS; api++) {
            if (!(fields[i].apis & api)) {
                const struct nib_field *other = NULL;
                for (size_t j = 0; j < count; j++)
                    if (j != i && !strcmp(fields[j].name, fields[i].name))
                        other = &fields[j];
                if (!other && strcmp(fields[i].name, "top_logprobs") != 0)
                    refused(&fields[i], (enum nib_api)api, "1");
                continue;
            }
            if (fields[i].type <= NIB_FIELD_REAL) {
                check(&fields[i], (enum nib_api)api);
                checked++;
            } else {
                ck_assert(decode_field(&fields[i], (enum nib_api)api, "null"));
            }
        }
    ck_assert_int_gt(checked, 25);
}
END_TEST

START_TEST(test_defaults)
{
    ck_assert(decode(NIB_API_CHAT, "{}"));
    ck_assert(params.temperature == 0.7 && params.top_p == 0.9 && params.effort == 2);
    ck_assert(params.repetition_penalty == 1 && params.frequency_penalty == 0);
    ck_assert(!params.stream && !params.seed_given && params.max_tokens == 0);
    ck_assert_int_eq(params.completion_logprobs, -1);
    ck_assert(decode(NIB_API_CHAT, "{\"seed\":0}"));
    ck_assert(params.seed_given);
    ck_assert(decode(NIB_API_CHAT, "{\"seed\":null}"));
    ck_assert(!params.seed_given);
}
END_TEST

START_TEST(test_unknown)
{
    ck_assert(!decode(NIB_API_CHAT, "{\"chat_template\":\"x\"}"));
    ck_assert_str_eq(refusal.param, "chat_template");
    ck_assert_str_eq(refusal.code, "unknown_parameter");
    ck_assert(!decode(NIB_API_CHAT, "{\"prompt\":\"x\"}"));
    ck_assert(!decode(NIB_API_COMPLETIONS, "{\"messages\":[]}"));
    ck_assert(!decode(NIB_API_CHAT, "[]"));
    /* a name cut in the middle of a character must not reach the response */
    ck_assert(!decode(NIB_API_CHAT, "{\"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3"
                                    "\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3"
                                    "\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3"
                                    "\xa9\xc3\xa9\xc3\xa9\xc3\xa9\":1}"));
    for (const char *c = refusal.msg.text; *c; c++)
        ck_assert(*c >= 0x20 && *c < 0x7f);
    for (const char *c = refusal.param; *c; c++)
        ck_assert(*c >= 0x20 && *c < 0x7f);
}
END_TEST

START_TEST(test_stop_and_bias)
{
    ck_assert(decode(NIB_API_CHAT, "{\"stop\":\"END\",\"logit_bias\":{\"5\":-100,\"999\":1.5}}"));
    ck_assert_uint_eq(params.stop.count, 1);
    ck_assert_uint_eq(params.bias_count, 2);
    ck_assert_uint_eq(params.bias[0].token, 5);
    ck_assert(params.bias[0].bias == -100.0f && params.bias[1].bias == 1.5f);
    ck_assert(decode(NIB_API_CHAT, "{\"stop\":[\"a\",\"b\",\"c\",\"d\"]}"));
    ck_assert_uint_eq(params.stop.count, 4);
    ck_assert(decode(NIB_API_CHAT, "{\"stop\":[]}"));
    ck_assert_uint_eq(params.stop.count, 0);
    ck_assert(!decode(NIB_API_CHAT, "{\"logit_bias\":{\"1000\":1}}"));
    ck_assert(!decode(NIB_API_CHAT, "{\"logit_bias\":{\"4294967297\":1}}"));
    ck_assert(!decode(NIB_API_CHAT, "{\"logit_bias\":{\" 1\":1}}"));
}
END_TEST

START_TEST(test_most_biases)
{
    static char text[16384];
    size_t n = (size_t)sprintf(text, "{\"logit_bias\":{");
    for (int i = 0; i < NIB_MAX_LOGIT_BIAS; i++)
        n += (size_t)sprintf(text + n, "%s\"%d\":1", i ? "," : "", i);
    (void)sprintf(text + n, "}}");
    ck_assert(decode(NIB_API_CHAT, text));
    ck_assert_uint_eq(params.bias_count, NIB_MAX_LOGIT_BIAS);
    (void)sprintf(text + n, ",\"900\":1}}");
    ck_assert(!decode(NIB_API_CHAT, text));
}
END_TEST

START_TEST(test_printed_table_is_json)
{
    static char text[16384];
    json_t *root = NULL;
    struct nib_msg msg;
    size_t count;
    struct nib_out out = nib_out_of(text, sizeof text);
    (void)nib_fields(&count);
    nib_fields_print(&out);
    ck_assert(!out.full);
    nib_json_pool_init(memory, sizeof memory);
    ck_assert_int_eq(nib_json_parse(text, out.used, &root, &msg), NIB_OK);
    ck_assert_uint_eq(json_array_size(root), count);
}
END_TEST

NIB_SUITE(fields, test_every_field, test_defaults, test_unknown, test_stop_and_bias, test_most_biases,
          test_printed_table_is_json)
