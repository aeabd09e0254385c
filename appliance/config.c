/* appliance/config.c: YAML events to struct nib_config.
 *
 * Owns the libyaml parser while it runs. Limits: NIB_MAX_CONFIG_BYTES of text, two levels of
 * mappings, NIB_MAX_UID_RULES peer rules. Boot only, one thread. Fails with one sentence that names
 * the line, the key and what is allowed. */
#include "appliance/config.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

/* Where in the document the next event stands. */
enum place {
    AT_START,    /* before the root mapping */
    AT_ROOT,     /* a section's name, or the end */
    AT_SECTION,  /* a section's value */
    AT_KEY,      /* a key of the section, or its end */
    AT_VALUE,    /* a key's value */
    AT_PEERS,    /* the value of `peers` */
    AT_RULE,     /* a rule of `peers`, or the end */
    AT_RULE_KEY, /* a key of a rule, or its end */
    AT_RULE_VALUE,
    AT_END
};

struct reader {
    enum place place;
    struct nib_config *config;
    size_t line;
    char section[NIB_MAX_NAME_BYTES];
    char name[NIB_MAX_NAME_BYTES];
    uint64_t sections_seen; /* bit i: the section of key i began */
    uint64_t keys_seen;     /* bit i: key i was given */
    bool peers_seen;
    struct nib_peer_rule rule;
    bool rule_subject;    /* the open rule already names whom it is about */
    char rule_names[256]; /* keys of the open rule, each followed by a comma */
    struct nib_msg *msg;
};

static enum nib_err fail_at(struct reader *r, enum nib_err err, const char *what)
{
    return nib_fail(r->msg, err, "line %zu: %.400s", r->line, what);
}

static bool copy_name(char *to, size_t to_bytes, const yaml_event_t *e)
{
    size_t n = e->data.scalar.length;
    if (n == 0 || n >= to_bytes || memchr(e->data.scalar.value, '\0', n))
        return false;
    memcpy(to, e->data.scalar.value, n);
    to[n] = '\0';
    return true;
}

static enum nib_err root_key(struct reader *r, const yaml_event_t *e)
{
    if (!copy_name(r->section, sizeof r->section, e))
        return fail_at(r, NIB_E_ARG, "a section's name must have 1 to 63 bytes");
    if (!strcmp(r->section, "peers")) {
        if (r->peers_seen)
            return fail_at(r, NIB_E_ARG, "peers is given twice");
        r->peers_seen = true;
        r->place = AT_PEERS;
        return NIB_OK;
    }
    size_t count;
    const struct nib_config_key *keys = nib_config_keys(&count);
    size_t n = strlen(r->section);
    for (size_t i = 0; i < count; i++)
        if (!strncmp(keys[i].key, r->section, n) && keys[i].key[n] == '.') {
            if (r->sections_seen & 1ull << i)
                return nib_fail(r->msg, NIB_E_ARG, "line %zu: section %s is given twice", r->line, r->section);
            r->sections_seen |= 1ull << i;
            r->place = AT_SECTION;
            return NIB_OK;
        }
    return nib_fail(r->msg, NIB_E_ARG, "line %zu: unknown section \"%s\"", r->line, r->section);
}

static enum nib_err value(struct reader *r, const yaml_event_t *e)
{
    char full[2 * NIB_MAX_NAME_BYTES + 2];
    (void)snprintf(full, sizeof full, "%s.%s", r->section, r->name);
    size_t count;
    const struct nib_config_key *keys = nib_config_keys(&count);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(keys[i].key, full) != 0)
            continue;
        if (r->keys_seen & 1ull << i)
            return nib_fail(r->msg, NIB_E_ARG, "line %zu: %s is given twice", r->line, full);
        r->keys_seen |= 1ull << i;
        struct nib_msg why;
        enum nib_err err = nib_config_set(&keys[i], (const char *)e->data.scalar.value, e->data.scalar.length,
                                          e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE, r->config, &why);
        r->place = AT_KEY;
        return err ? fail_at(r, err, why.text) : NIB_OK;
    }
    return nib_fail(r->msg, NIB_E_ARG, "line %zu: unknown key %s", r->line, full);
}

/* The number of a uid, gid, user or group. */
static enum nib_err subject(struct reader *r, const char *text)
{
    if (r->rule_subject)
        return fail_at(r, NIB_E_ARG, "a rule names one of user, group, uid, gid or any: true");
    r->rule_subject = true;
    r->rule.subject = !strcmp(r->name, "gid") || !strcmp(r->name, "group") ? NIB_PEER_GID : NIB_PEER_UID;
    if (!strcmp(r->name, "any")) {
        r->rule.subject = NIB_PEER_ANY;
        return !strcmp(text, "true") ? NIB_OK : fail_at(r, NIB_E_ARG, "any must be true");
    }
    if (!strcmp(r->name, "user") || !strcmp(r->name, "group")) {
        bool group = r->rule.subject == NIB_PEER_GID;
        const struct group *g = group ? getgrnam(text) : NULL;
        const struct passwd *u = group ? NULL : getpwnam(text);
        if (!g && !u)
            return nib_fail(r->msg, NIB_E_ARG, "line %zu: this machine has no %s \"%.64s\"", r->line, r->name, text);
        r->rule.id = g ? g->gr_gid : u->pw_uid;
        return NIB_OK;
    }
    struct nib_msg why;
    uint64_t id = 0;
    const struct nib_config_key key = {.key = r->name, .max = 4294967294.0};
    if (nib_config_set(&key, text, strlen(text), false, &id, &why) != NIB_OK)
        return fail_at(r, NIB_E_ARG, why.text);
    r->rule.id = (uint32_t)id;
    return NIB_OK;
}

static enum nib_err rule_value(struct reader *r, const yaml_event_t *e)
{
    char text[NIB_MAX_NAME_BYTES];
    char mark[NIB_MAX_NAME_BYTES + 2];
    r->place = AT_RULE_KEY;
    if (!copy_name(text, sizeof text, e))
        return fail_at(r, NIB_E_ARG, "a value of a peer rule must have 1 to 63 bytes");
    (void)snprintf(mark, sizeof mark, "%s,", r->name);
    if (strstr(r->rule_names, mark))
        return nib_fail(r->msg, NIB_E_ARG, "line %zu: %s is given twice in one rule", r->line, r->name);
    if (strlen(r->rule_names) + strlen(mark) < sizeof r->rule_names)
        (void)strcat(r->rule_names, mark);
    static const char *const subjects[] = {"user", "group", "uid", "gid", "any"};
    for (size_t i = 0; i < sizeof subjects / sizeof subjects[0]; i++)
        if (!strcmp(r->name, subjects[i]))
            return subject(r, text);
    const struct nib_config_key *key = nib_config_peer_key(r->name);
    if (!key)
        return nib_fail(r->msg, NIB_E_ARG, "line %zu: unknown key peers.%s", r->line, r->name);
    struct nib_msg why;
    enum nib_err err =
        nib_config_set(key, text, strlen(text), e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE, &r->rule, &why);
    return err ? fail_at(r, err, why.text) : NIB_OK;
}

static enum nib_err rule_end(struct reader *r)
{
    if (!r->rule_subject)
        return fail_at(r, NIB_E_ARG, "a peer rule needs one of user, group, uid, gid or any: true");
    r->config->peers[r->config->peers_count++] = r->rule;
    r->place = AT_RULE;
    return NIB_OK;
}

static enum nib_err scalar(struct reader *r, const yaml_event_t *e)
{
    switch (r->place) {
    case AT_ROOT:
        return root_key(r, e);
    case AT_KEY:
    case AT_RULE_KEY:
        if (!copy_name(r->name, sizeof r->name, e))
            return fail_at(r, NIB_E_ARG, "a key must have 1 to 63 bytes");
        r->place = r->place == AT_KEY ? AT_VALUE : AT_RULE_VALUE;
        return NIB_OK;
    case AT_VALUE:
        return value(r, e);
    case AT_RULE_VALUE:
        return rule_value(r, e);
    case AT_SECTION:
        if (e->data.scalar.length == 0) { /* "section:" with every key commented out */
            r->place = AT_ROOT;
            return NIB_OK;
        }
        return nib_fail(r->msg, NIB_E_FORMAT, "line %zu: section %s must hold keys", r->line, r->section);
    case AT_PEERS:
        return fail_at(r, NIB_E_FORMAT, "peers must be a list of rules");
    default:
        return fail_at(r, NIB_E_FORMAT, "the file must hold sections, each with its keys");
    }
}

static enum nib_err mapping_start(struct reader *r)
{
    switch (r->place) {
    case AT_START:
        r->place = AT_ROOT;
        return NIB_OK;
    case AT_SECTION:
        r->place = AT_KEY;
        return NIB_OK;
    case AT_RULE:
        if (r->config->peers_count >= NIB_MAX_UID_RULES)
            return nib_fail(r->msg, NIB_E_LIMIT, "line %zu: peers has more than %d rules", r->line, NIB_MAX_UID_RULES);
        memset(&r->rule, 0, sizeof r->rule);
        r->rule_subject = false;
        r->rule_names[0] = '\0';
        r->place = AT_RULE_KEY;
        return NIB_OK;
    default:
        return fail_at(r, NIB_E_FORMAT, "a mapping is not allowed here");
    }
}

static enum nib_err event(struct reader *r, const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_ALIAS_EVENT:
        return fail_at(r, NIB_E_FORMAT, "aliases are not allowed");
    case YAML_SCALAR_EVENT:
        if (e->data.scalar.anchor)
            return fail_at(r, NIB_E_FORMAT, "anchors are not allowed");
        return scalar(r, e);
    case YAML_MAPPING_START_EVENT:
        return mapping_start(r);
    case YAML_MAPPING_END_EVENT:
        if (r->place == AT_RULE_KEY)
            return rule_end(r);
        r->place = r->place == AT_KEY ? AT_ROOT : AT_END;
        return NIB_OK;
    case YAML_SEQUENCE_START_EVENT:
        if (r->place != AT_PEERS)
            return fail_at(r, NIB_E_FORMAT, "a list is not allowed here");
        r->place = AT_RULE;
        return NIB_OK;
    case YAML_SEQUENCE_END_EVENT:
        r->place = AT_ROOT;
        return NIB_OK;
    case YAML_DOCUMENT_START_EVENT:
        if (r->place == AT_END)
            return fail_at(r, NIB_E_FORMAT, "the file must hold one document");
        return NIB_OK;
    default:
        return NIB_OK;
    }
}

static enum nib_err read_all(struct reader *r, yaml_parser_t *parser)
{
    for (bool more = true; more;) {
        yaml_event_t e;
        if (!yaml_parser_parse(parser, &e))
            return nib_fail(r->msg, NIB_E_FORMAT, "line %zu: not YAML: %s", parser->problem_mark.line + 1,
                            parser->problem ? parser->problem : "out of memory");
        r->line = e.start_mark.line + 1;
        enum nib_err err = event(r, &e);
        more = e.type != YAML_STREAM_END_EVENT;
        yaml_event_delete(&e);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err check_whole(const struct nib_config *config, struct nib_msg *msg)
{
    size_t n = strlen(config->image_key);
    if (n != 0 && (n != 64 || strspn(config->image_key, "0123456789abcdefABCDEF") != 64))
        return nib_fail(msg, NIB_E_ARG, "image.public_key must be empty or 64 hex digits");
    if (strspn(config->model_name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                   "._:/-") != strlen(config->model_name))
        return nib_fail(msg, NIB_E_ARG, "model.name may have letters, digits and ._:/- only");
    const char *d = config->date;
    if (d[0] != '\0' && (strlen(d) != 10 || d[4] != '-' || d[7] != '-' || strspn(d, "0123456789-") != 10))
        return nib_fail(msg, NIB_E_ARG, "defaults.date must be empty or YYYY-MM-DD");
    return NIB_OK;
}

enum nib_err nib_config_parse(const char *text, size_t bytes, struct nib_config *ret_config, struct nib_msg *msg)
{
    if (bytes > NIB_MAX_CONFIG_BYTES)
        return nib_fail(msg, NIB_E_LIMIT, "the file has %zu bytes; at most %u are allowed", bytes,
                        NIB_MAX_CONFIG_BYTES);
    struct nib_config config;
    nib_config_init(&config);
    struct reader r = {.config = &config, .msg = msg, .line = 1};
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return nib_fail(msg, NIB_E_NOMEM, "no memory for the YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    enum nib_err err = read_all(&r, &parser);
    yaml_parser_delete(&parser);
    if (!err)
        err = check_whole(&config, msg);
    if (!err)
        *ret_config = config;
    return err;
}

enum nib_err nib_config_load(const char *path, struct nib_config *ret_config, struct nib_msg *msg)
{
    static char text[NIB_MAX_CONFIG_BYTES + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "%.200s: %s", path, strerror(errno));
    size_t used = 0;
    ssize_t n = 0;
    while (used < sizeof text && (n = read(fd, text + used, sizeof text - used)) > 0)
        used += (size_t)n;
    int error = errno;
    (void)close(fd);
    if (n < 0)
        return nib_fail(msg, NIB_E_IO, "%.200s: %s", path, strerror(error));
    struct nib_msg why;
    enum nib_err err = nib_config_parse(text, used, ret_config, &why);
    return err ? nib_fail(msg, err, "%.100s: %.400s", path, why.text) : NIB_OK;
}
