/* The configuration file: every key at and around its bounds, every kind of mistake, and the
 * committed file. */
#include "appliance/config.h"
#include "tests/harness.h"

static struct nib_config config;
static struct nib_msg msg;

static enum nib_err parse(const char *text)
{
    msg.text[0] = '\0';
    return nib_config_parse(text, strlen(text), &config, &msg);
}

/* "section:\n  name: VALUE\n" */
static enum nib_err parse_key(const struct nib_config_key *key, const char *value)
{
    char text[1024];
    const char *dot = strchr(key->key, '.');
    (void)snprintf(text, sizeof text, "%.*s:\n  %s: %s\n", (int)(dot - key->key), key->key, dot + 1, value);
    return parse(text);
}

static void refused(const struct nib_config_key *key, const char *value)
{
    struct nib_config before = config;
    ck_assert_msg(parse_key(key, value) == NIB_E_ARG, "%s: %s was accepted", key->key, value);
    ck_assert_msg(strstr(msg.text, key->key) && strstr(msg.text, "line 2"), "%s", msg.text);
    ck_assert_int_eq(memcmp(&before, &config, sizeof config), 0);
}

static void accepted(const struct nib_config_key *key, const char *value)
{
    ck_assert_msg(parse_key(key, value) == NIB_OK, "%s: %s: %s", key->key, value, msg.text);
}

static uint64_t uint_of(const struct nib_config_key *key)
{
    uint64_t v;
    memcpy(&v, (const uint8_t *)&config + key->offset, sizeof v);
    return v;
}

static void number(const struct nib_config_key *key, double value, bool good)
{
    char text[64];
    (void)snprintf(text, sizeof text, key->type == NIB_CFG_MODE ? "%04o" : "%u", (unsigned)value);
    if (!good) {
        refused(key, text);
        return;
    }
    accepted(key, text);
    ck_assert_uint_eq(uint_of(key), (uint64_t)value);
}

static void check_number(const struct nib_config_key *key)
{
    if (key->min > 0)
        number(key, key->min - 1, false);
    number(key, key->min, true);
    number(key, key->max, true);
    number(key, key->max + 1, false);
    const char *const wrong[] = {
        "-1", "1.5", "1e3", "0x10", "ten", "\"1\"", "", "true", "+1", "~", "1 2", "18446744073709551617", "1_0"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        if (key->type != NIB_CFG_MODE || strcmp(wrong[i], "\"1\"") != 0)
            refused(key, wrong[i]);
}

static void check_real(const struct nib_config_key *key)
{
    char text[64];
    const double good[] = {key->min, key->max, (key->min + key->max) / 2};
    for (size_t i = 0; i < 3; i++) {
        double v;
        (void)snprintf(text, sizeof text, "%.17g", good[i]);
        accepted(key, text);
        memcpy(&v, (const uint8_t *)&config + key->offset, sizeof v);
        ck_assert(v == good[i]);
    }
    const double bad[] = {key->min - 0.001, key->max + 0.001, 1e308};
    for (size_t i = 0; i < 3; i++) {
        (void)snprintf(text, sizeof text, "%.17g", bad[i]);
        refused(key, text);
    }
    const char *const wrong[] = {"nan", "inf", ".inf", ".nan", "1e400", "one", "\"1\"", "1x", ""};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        refused(key, wrong[i]);
}

static void check_string(const struct nib_config_key *key)
{
    char text[400];
    bool free_form = !strcmp(key->key, "image.path") || !strcmp(key->key, "socket.path") ||
                     !strcmp(key->key, "engine.row") || !strcmp(key->key, "model.name");
    if (!free_form)
        return; /* the other strings have a form of their own, tested below */
    memset(text, 'a', sizeof text);
    text[(size_t)key->max] = '\0';
    accepted(key, text);
    text[(size_t)key->max] = 'a';
    text[(size_t)key->max + 1] = '\0';
    refused(key, text);
    if (key->min > 0)
        refused(key, "\"\"");
    else
        accepted(key, "\"\"");
    refused(key, "\"a\\0b\"");
}

START_TEST(test_every_key)
{
    size_t count;
    const struct nib_config_key *keys = nib_config_keys(&count);
    ck_assert_uint_gt(count, 20);
    ck_assert_uint_le(count, 64); /* the parser keeps a bit a key */
    for (size_t i = 0; i < count; i++) {
        switch (keys[i].type) {
        case NIB_CFG_UINT:
        case NIB_CFG_MODE:
            check_number(&keys[i]);
            break;
        case NIB_CFG_REAL:
            check_real(&keys[i]);
            break;
        case NIB_CFG_STRING:
            check_string(&keys[i]);
            break;
        case NIB_CFG_BOOL:
            accepted(&keys[i], "true");
            accepted(&keys[i], "false");
            refused(&keys[i], "yes");
            refused(&keys[i], "1");
            refused(&keys[i], "\"true\"");
            break;
        case NIB_CFG_CHOICE:
            refused(&keys[i], "neither");
            refused(&keys[i], "");
            refused(&keys[i], keys[i].choices); /* "a|b" is no choice */
            accepted(&keys[i], keys[i].initial);
            break;
        }
    }
}
END_TEST

START_TEST(test_defaults)
{
    struct nib_config initial;
    nib_config_init(&initial);
    ck_assert_int_eq(parse(""), NIB_OK);
    ck_assert_int_eq(memcmp(&initial, &config, sizeof config), 0);
    ck_assert_int_eq(parse("# nothing\n"), NIB_OK);
    ck_assert_str_eq(config.socket_path, "/run/nibbled/nibbled.sock");
    ck_assert_uint_eq(config.socket_mode, 0660);
    ck_assert(config.temperature == 1.0);
    ck_assert_uint_eq(config.peers_count, 0);
}
END_TEST

/* The printed file has every key, and says exactly the defaults. */
START_TEST(test_printed_file)
{
    static char text[NIB_MAX_CONFIG_BYTES];
    struct nib_config initial;
    size_t count;
    const struct nib_config_key *keys = nib_config_keys(&count);
    FILE *file = fmemopen(text, sizeof text, "w");
    nib_config_print(file);
    (void)fclose(file);
    nib_config_init(&initial);
    ck_assert_msg(parse(text) == NIB_OK, "%s", msg.text);
    ck_assert_int_eq(memcmp(&initial, &config, sizeof config), 0);
    for (size_t i = 0; i < count; i++) {
        char line[128];
        (void)snprintf(line, sizeof line, "\n  %s: ", strchr(keys[i].key, '.') + 1);
        ck_assert_msg(strstr(text, line) != NULL, "%s is not documented", keys[i].key);
        ck_assert_uint_gt(strlen(keys[i].doc), 10);
    }
    ck_assert_ptr_nonnull(strstr(text, "\npeers: []"));
}
END_TEST

START_TEST(test_mistakes)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"nothing:\n  a: 1\n", "line 1: unknown section \"nothing\""},
        {"limits:\n  nothing: 1\n", "line 2: unknown key limits.nothing"},
        {"limit:\n  queue: 1\n", "unknown section"},
        {"limits:\n  queue: 1\n  queue: 1\n", "line 3: limits.queue is given twice"},
        {"limits:\n  queue: 1\nlimits:\n  bodies: 1\n", "line 3: section limits is given twice"},
        {"limits: 3\n", "section limits must hold keys"},
        {"limits: [1]\n", "list"},
        {"limits:\n  queue: [1]\n", "list"},
        {"limits:\n  queue: {a: 1}\n", "mapping"},
        {"- a\n", "list"},
        {"just text\n", "sections"},
        {"limits: &x 1\n", "anchor"},
        {"limits:\n  queue: &x 1\n", "anchor"},
        {"limits: &x\n  queue: 1\ntime: *x\n", "aliases"},
        {"limits:\n  queue: *x\n", "aliases"},
        {"limits:\n\tqueue: 1\n", "not YAML"},
        {"limits: {queue: 1\n", "not YAML"},
        {"\"\xff\": 1\n", "not YAML"},
        {"limits:\n  queue: 1\n---\nlimits:\n  queue: 2\n", "one document"},
        {"? [a]\n: 1\n", "list"},
        {"image:\n  public_key: abc\n", "64 hex digits"},
        {"defaults:\n  date: 2026-1-1\n", "YYYY-MM-DD"},
        {"defaults:\n  date: 20-26-1-11\n", "YYYY-MM-DD"},
        {"model:\n  name: 'a\"b'\n", "model.name"},
        {"peers: 1\n", "list of rules"},
        {"peers: {uid: 0}\n", "mapping"},
        {"peers: [1]\n", "sections"},
        {"peers:\n  - requests: 1\n", "needs one of"},
        {"peers:\n  - {}\n", "needs one of"},
        {"peers:\n  - uid: 0\n    gid: 0\n", "names one of"},
        {"peers:\n  - uid: -1\n", "uid must be"},
        {"peers:\n  - uid: 4294967295\n", "uid must be"},
        {"peers:\n  - uid: 0\n    uid: 0\n", "given twice"},
        {"peers:\n  - user: no-such-user-here\n", "no user"},
        {"peers:\n  - group: no-such-group-here\n", "no group"},
        {"peers:\n  - any: false\n", "any must be true"},
        {"peers:\n  - uid: 0\n    nothing: 1\n", "unknown key peers.nothing"},
        {"peers:\n  - uid: 0\n    queue: 257\n", "from 0 to 256"},
        {"peers:\n  - uid: 0\n    deny: 1\n", "true or false"},
        {"peers: []\npeers: []\n", "given twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck_assert_msg(parse(cases[i].text) != NIB_OK, "accepted: %s", cases[i].text);
        ck_assert_msg(strstr(msg.text, cases[i].says) != NULL, "%s: %s", cases[i].text, msg.text);
        ck_assert_msg(!strncmp(msg.text, "line ", 5) || strstr(cases[i].text, "model") ||
                          strstr(cases[i].text, "date") || strstr(cases[i].text, "key"),
                      "no line: %s", msg.text);
    }
}
END_TEST

START_TEST(test_peers)
{
    ck_assert_int_eq(parse("peers:\n  - uid: 1000\n    requests: 3\n    queue: 2\n"
                           "    ctx_tokens: 4096\n  - gid: 5\n    deny: true\n  - user: root\n"
                           "  - any: true\n"),
                     NIB_OK);
    ck_assert_uint_eq(config.peers_count, 4);
    ck_assert_int_eq(config.peers[0].subject, NIB_PEER_UID);
    ck_assert_uint_eq(config.peers[0].id, 1000);
    ck_assert_uint_eq(config.peers[0].requests, 3);
    ck_assert_uint_eq(config.peers[0].queue, 2);
    ck_assert_uint_eq(config.peers[0].ctx_tokens, 4096);
    ck_assert(config.peers[1].deny && config.peers[1].subject == NIB_PEER_GID);
    ck_assert_uint_eq(config.peers[2].id, 0);
    ck_assert_int_eq(config.peers[3].subject, NIB_PEER_ANY);
}
END_TEST

START_TEST(test_too_many_peers)
{
    static char text[4096] = "peers:\n";
    for (int i = 0; i < NIB_MAX_UID_RULES; i++)
        (void)strcat(text, "  - uid: 1\n");
    ck_assert_int_eq(parse(text), NIB_OK);
    ck_assert_uint_eq(config.peers_count, NIB_MAX_UID_RULES);
    (void)strcat(text, "  - uid: 1\n");
    ck_assert_int_eq(parse(text), NIB_E_LIMIT);
}
END_TEST

START_TEST(test_size)
{
    static char text[NIB_MAX_CONFIG_BYTES + 2];
    memset(text, '\n', sizeof text);
    ck_assert_int_eq(nib_config_parse(text, NIB_MAX_CONFIG_BYTES, &config, &msg), NIB_OK);
    ck_assert_int_eq(nib_config_parse(text, NIB_MAX_CONFIG_BYTES + 1, &config, &msg), NIB_E_LIMIT);
    ck_assert_ptr_nonnull(strstr(msg.text, "65536"));
}
END_TEST

/* Cut anywhere, or with any byte changed: an answer, never a crash. */
START_TEST(test_damaged)
{
    static char text[NIB_MAX_CONFIG_BYTES];
    FILE *file = fmemopen(text, sizeof text, "w");
    nib_config_print(file);
    (void)fclose(file);
    size_t n = strlen(text);
    for (size_t cut = 0; cut < n; cut += 7)
        (void)!nib_config_parse(text, cut, &config, &msg);
    uint64_t seed = nib_test_seed();
    size_t good = 0;
    for (int i = 0; i < 1000; i++) {
        size_t at = nib_test_rand(&seed) % n;
        char was = text[at];
        text[at] = (char)nib_test_rand(&seed);
        good += nib_config_parse(text, n, &config, &msg) == NIB_OK;
        text[at] = was;
    }
    ck_assert_uint_gt(good, 0); /* in a comment */
    ck_assert_uint_lt(good, 1000);
}
END_TEST

NIB_SUITE(config, test_every_key, test_defaults, test_printed_file, test_mistakes, test_peers, test_too_many_peers,
          test_size, test_damaged)
