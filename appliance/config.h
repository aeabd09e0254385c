/* appliance/config.h: the daemon's one configuration file, YAML through libyaml.
 *
 * One table holds every key with its type, range, default and documentation; the parser, the
 * errors, the file in etc/ and the tests are all made from it. Boot only, one thread. */
#ifndef NIB_APPLIANCE_CONFIG_H
#define NIB_APPLIANCE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "core/err.h"

#define NIB_CONFIG_STRING_BYTES 256 /* a string value with its NUL, file names included */

/* Who a peer rule is about. */
enum nib_peer_subject { NIB_PEER_ANY, NIB_PEER_UID, NIB_PEER_GID };

/* One entry of `peers`; the first rule that matches a client decides. 0 in a limit = no own limit.
 */
struct nib_peer_rule {
    enum nib_peer_subject subject;
    uint32_t id; /* uid or gid; unused for ANY */
    bool deny;
    uint64_t requests;   /* requests of one uid at once, running or waiting */
    uint64_t queue;      /* of them, waiting for a slot */
    uint64_t ctx_tokens; /* longest prompt plus answer */
};

struct nib_config {
    char image_path[NIB_CONFIG_STRING_BYTES];
    char image_key[NIB_CONFIG_STRING_BYTES];  /* 64 hex digits, or empty: unsigned images pass */
    char model_name[NIB_CONFIG_STRING_BYTES]; /* empty: the shape's name */
    uint64_t device;                          /* enum nib_device of appliance/machine.h */
    char row[NIB_CONFIG_STRING_BYTES];        /* of the capability table; empty: the best */
    uint64_t threads, ctx_tokens, slots, step_rows, memory_mib;
    uint64_t kv; /* enum nib_kv_form of core/model.h */
    bool memory_lock;
    char socket_path[NIB_CONFIG_STRING_BYTES];
    uint64_t socket_mode;
    char socket_group[NIB_CONFIG_STRING_BYTES];
    uint64_t connections, queue, bodies, body_bytes, answer_bytes, json_bytes;
    uint64_t head_ms_max, body_ms_max, idle_ms_max, write_ms_max, stall_ms_max, drain_ms_max;
    uint64_t step_ms_max, load_ms_max;
    double gap_ratio;
    double temperature, top_p;
    uint64_t effort; /* 0 low, 1 medium, 2 high */
    uint64_t answer_tokens;
    char date[NIB_CONFIG_STRING_BYTES];
    bool prefix_reuse, prefix_share;
    uint64_t draft_tokens;
    bool log_requests;
    uint64_t peers_count;
    struct nib_peer_rule peers[NIB_MAX_UID_RULES];
};

enum nib_config_type {
    NIB_CFG_UINT,
    NIB_CFG_REAL,
    NIB_CFG_BOOL,
    NIB_CFG_STRING, /* min..max bytes */
    NIB_CFG_CHOICE, /* one of `choices`, kept as its index */
    NIB_CFG_MODE    /* octal file mode */
};

struct nib_config_key {
    const char *key; /* "section.name", or "name" at the top */
    enum nib_config_type type;
    size_t offset;       /* in struct nib_config (or nib_peer_rule) */
    double min, max;     /* exact: all bounds are below 2^53 */
    const char *initial; /* default, in YAML */
    const char *choices; /* "a|b|c" for NIB_CFG_CHOICE */
    const char *doc;     /* lines for people, without the comment sign */
};

const struct nib_config_key *nib_config_keys(size_t *ret_count);

/* Every key at its default. */
void nib_config_init(struct nib_config *ret_config);

/* Parses text[0..bytes). NIB_E_LIMIT: longer than NIB_MAX_CONFIG_BYTES. NIB_E_FORMAT: not YAML, an
 * alias, or the wrong structure. NIB_E_ARG: an unknown or repeated key, a value of the wrong type
 * or outside its range. The sentence names line, key and what is allowed. */
enum nib_err nib_config_parse(const char *text, size_t bytes, struct nib_config *ret_config,
                              struct nib_msg *msg) NIB_CHECKED;

/* The same for a file. NIB_E_IO: it cannot be read. */
enum nib_err nib_config_load(const char *path, struct nib_config *ret_config, struct nib_msg *msg) NIB_CHECKED;

/* One value as its key demands, into `base` + offset. The sentence has no line. */
enum nib_err nib_config_set(const struct nib_config_key *key, const char *value, size_t bytes, bool quoted, void *base,
                            struct nib_msg *msg) NIB_CHECKED;

/* The key of a peer rule by that name, or NULL. */
const struct nib_config_key *nib_config_peer_key(const char *name);

/* Writes the documented file, every key at its default: etc/nibbled.yaml. */
void nib_config_print(FILE *file);

#endif
