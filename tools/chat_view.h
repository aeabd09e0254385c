/* tools/chat_view.h: one streamed answer on the terminal. One thread.
 *
 * The answer goes to stdout. Its reasoning goes before it, dimmed, when stdout is a terminal, and else to stderr, so that
 * a file or a pipe gets the answer alone. Colours only where a stream is a terminal and NO_COLOR does not speak. */
#ifndef NIB_TOOLS_CHAT_VIEW_H
#define NIB_TOOLS_CHAT_VIEW_H

#include <stdbool.h>

#include "tools/client.h"

enum nib_view_part { NIB_VIEW_NONE, NIB_VIEW_REASONING, NIB_VIEW_CONTENT, NIB_VIEW_CALL };

struct nib_view {
    bool colour_out;
    bool colour_err;
    FILE *aside;             /* where reasoning goes */
    enum nib_view_part part; /* being printed */
    bool line_open;          /* the last byte of that part was no newline */
};

/* colour: false turns it off whatever the terminal says. */
void nib_view_init(struct nib_view *view, bool colour);

/* Text of a part, or a tool call's beginning; cleaned on its way, on the terminal when it returns. */
void nib_view_reasoning(struct nib_view *view, const char *text, size_t bytes);
void nib_view_content(struct nib_view *view, const char *text, size_t bytes);
void nib_view_call(struct nib_view *view, const char *name, size_t bytes);
void nib_view_arguments(struct nib_view *view, const char *text, size_t bytes);

/* Ends the answer: no open line, no dimming, everything written. */
void nib_view_end(struct nib_view *view);

/* One dimmed line on stderr, after the answer. */
void nib_view_stats(const struct nib_view *view, const struct nib_client_stats *stats);

/* One line on stderr; the text may come from the daemon. */
void nib_view_say(const char *text);

#endif
