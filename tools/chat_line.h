/* tools/chat_line.h: one line from the person, with editing and history on a terminal. One thread. */
#ifndef NIB_TOOLS_CHAT_LINE_H
#define NIB_TOOLS_CHAT_LINE_H

#include <signal.h>

#include "core/err.h"

/* The signal handler's flag: an interrupt while a line is read drops that line. */
extern volatile sig_atomic_t nib_chat_stop;

/* Sets the locale's characters to UTF-8 and takes the terminal. */
enum nib_err nib_chat_line_open(struct nib_msg *msg) NIB_CHECKED;

/* The next line without its newline, the caller's to free; NULL at the end of the input. */
char *nib_chat_line_read(void);

void nib_chat_line_close(void);

#endif
