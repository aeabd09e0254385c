/* tools/chat_tools.h: the two functions that `nibble chat --demo` offers to the model and runs itself. One thread. */
#ifndef NIB_TOOLS_CHAT_TOOLS_H
#define NIB_TOOLS_CHAT_TOOLS_H

#include <jansson.h>

#include "core/err.h"

/* "tools" of a request; the caller's. */
json_t *nib_chat_tools(void);

/* What a call gives, as JSON text, malloc'd, the caller's: get_status is the daemon's own GET /health, get_time this
 * machine's clock in one of a few zones. NIB_E_ARG: no such function or zone. Else the daemon's failure. */
enum nib_err nib_chat_tool_run(const char *socket, const char *name, const char *arguments, char **ret_result,
                               struct nib_msg *msg) NIB_CHECKED;

#endif
