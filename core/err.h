/* core/err.h: error codes, the one-sentence message, and the invariant check.
 *
 * Every function that can fail returns enum nib_err and, where a person will read it, fills a struct nib_msg
 * with one sentence that names what is wrong and what is allowed. Out-parameters (ret_*) are untouched on
 * failure unless the header says otherwise. Any thread. */
#ifndef NIB_CORE_ERR_H
#define NIB_CORE_ERR_H

#include "core/limits.h"

#define NIB_CHECKED      __attribute__((warn_unused_result))
#define NIB_PRINTF(f, a) __attribute__((format(printf, f, a)))

enum nib_err {
    NIB_OK = 0,
    NIB_E_ARG,         /* a value is outside its allowed range */
    NIB_E_LIMIT,       /* a size exceeds a NIB_MAX_* or the plan */
    NIB_E_FORMAT,      /* bytes that do not have the form they must have */
    NIB_E_HASH,        /* content differs from its recorded hash */
    NIB_E_SIGNATURE,   /* signature absent, or made by another key */
    NIB_E_IO,          /* the operating system refused a read, write or open */
    NIB_E_NOMEM,       /* boot only: memory could not be had */
    NIB_E_FULL,        /* a fixed pool or queue has no free place now */
    NIB_E_STATE,       /* the call is not allowed in this state (stale handle, sealed arena) */
    NIB_E_UNSUPPORTED, /* the machine or this build cannot do it */
    NIB_E_DEVICE,      /* the engine failed; the process must restart */
    NIB_ERR_COUNT
};

/* One sentence, NUL-terminated, no newline. */
struct nib_msg {
    char text[NIB_MAX_MSG_BYTES];
};

/* Writes the sentence (truncated to fit) and returns `err`, so that callers can `return nib_fail(...)`.
 * `msg` may be NULL. */
enum nib_err nib_fail(struct nib_msg *msg, enum nib_err err, const char *fmt, ...) NIB_PRINTF(3, 4);

/* Stable lower-case name of a code ("format", "hash", ...); "unknown" for anything else. */
const char *nib_err_name(enum nib_err err);

/* An invariant, kept in release builds: prints file, line and the condition to stderr, then aborts. */
#define NIB_MUST(cond) ((cond) ? (void)0 : nib_must_failed(__FILE__, __LINE__, #cond))
_Noreturn void nib_must_failed(const char *file, int line, const char *cond);

#endif
