/* core/err.c: owns nothing; formats messages and stops the process on a broken invariant.
 * Limits: NIB_MAX_MSG_BYTES a sentence. Any thread. Cannot fail. */
#include "core/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const err_names[NIB_ERR_COUNT] = {
    "ok", "argument", "limit", "format", "hash", "signature", "io", "memory", "full", "state", "unsupported", "device",
};

enum nib_err nib_fail(struct nib_msg *msg, enum nib_err err, const char *fmt, ...)
{
    if (msg) {
        va_list args;
        va_start(args, fmt);
        (void)vsnprintf(msg->text, sizeof msg->text, fmt, args);
        va_end(args);
    }
    return err;
}

const char *nib_err_name(enum nib_err err)
{
    if ((unsigned)err >= NIB_ERR_COUNT)
        return "unknown";
    return err_names[err];
}

_Noreturn void nib_must_failed(const char *file, int line, const char *cond)
{
    (void)fprintf(stderr, "nibbled: invariant broken at %s:%d: %s\n", file, line, cond);
    abort();
}
