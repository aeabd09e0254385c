/* tools/clean.h: text from elsewhere (a model, a daemon) on its way to a terminal. Any thread. */
#ifndef NIB_TOOLS_CLEAN_H
#define NIB_TOOLS_CLEAN_H

#include <stddef.h>
#include <stdio.h>

/* Prints the text without anything that could steer a terminal: of the control characters (C0, DEL, C1) newline and tab
 * pass, carriage returns are dropped, each other becomes U+FFFD, as does what is not UTF-8. */
void nib_clean_print(FILE *out, const char *text, size_t bytes);

#endif
