/* tools/chat_line.c: owns the libedit editor and its history of HISTORY lines. One thread.
 * Characters are read here and not by libedit, whose own reader does not come back from an interrupt. */
#include "tools/chat_line.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

enum { HISTORY = 1000 };

volatile sig_atomic_t nib_chat_stop;
static EditLine *edit;
static History *history_lines;
static sigset_t outside; /* signal mask of the caller; while a line is read, an interrupt comes in ppoll or waits */

static char *prompt_text(EditLine *e)
{
    static char text[] = "> ";
    (void)e;
    return text;
}

/* 1 byte, 0 at the end, -1 on an interrupt or error. */
static int read_byte(char *ret)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    while (ppoll(&in, 1, NULL, &outside) < 0)
        if (errno != EINTR || nib_chat_stop)
            return -1;
    return (int)read(STDIN_FILENO, ret, 1);
}

/* libedit's contract: 1 and a character, 0 at the end, -1 to give up. What is no UTF-8 is passed over. */
static int read_char(EditLine *e, wchar_t *ret)
{
    mbstate_t state = {0};
    (void)e;
    for (;;) {
        char byte;
        int n = read_byte(&byte);
        if (n != 1)
            return n;
        bool first = mbsinit(&state);
        size_t length = mbrtowc(ret, &byte, 1, &state);
        if (length == (size_t)-1) {
            memset(&state, 0, sizeof state);
            if (!first) /* the byte may begin another character */
                length = mbrtowc(ret, &byte, 1, &state);
        }
        if (length == (size_t)-1)
            memset(&state, 0, sizeof state);
        else if (length <= 1)
            return 1;
    }
}

enum nib_err nib_chat_line_open(struct nib_msg *msg)
{
    (void)setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        (void)setlocale(LC_CTYPE, "C.UTF-8");
    HistEvent event;
    edit = el_init("nibble", stdin, stdout, stderr);
    history_lines = history_init();
    if (!edit || !history_lines)
        return nib_fail(msg, NIB_E_IO, "the terminal cannot be used");
    history(history_lines, &event, H_SETSIZE, HISTORY);
    el_set(edit, EL_PROMPT, prompt_text);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, history_lines);
    el_set(edit, EL_GETCFN, read_char);
    return NIB_OK;
}

/* libedit's line, or NULL. */
static const char *get_line(void)
{
    for (;;) {
        int count;
        nib_chat_stop = 0;
        el_set(edit, EL_PREP_TERM, 1); /* before the prompt: what is typed at once is not echoed twice */
        const char *line = el_gets(edit, &count);
        if (line && count > 0)
            return line;
        if (!nib_chat_stop)
            return NULL;
        (void)putchar('\n');
    }
}

char *nib_chat_line_read(void)
{
    sigset_t interrupt;
    (void)sigemptyset(&interrupt);
    (void)sigaddset(&interrupt, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &interrupt, &outside);
    const char *line = get_line();
    (void)sigprocmask(SIG_SETMASK, &outside, NULL);
    if (!line)
        return NULL;
    HistEvent event;
    size_t bytes = strcspn(line, "\r\n");
    if (bytes)
        history(history_lines, &event, H_ENTER, line);
    return strndup(line, bytes);
}

void nib_chat_line_close(void)
{
    if (history_lines)
        history_end(history_lines);
    if (edit)
        el_end(edit);
}
