/* tools/chat_view.c: owns the order of stdout and stderr while an answer is printed: whatever is written to one, the
 * other is flushed first. One thread. Fails only as the streams do. */
#include "tools/chat_view.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/clean.h"

#define DIM   "\033[2m"
#define PLAIN "\033[0m"

static bool colour_allowed(void)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return !(no && *no) && !(term && strcmp(term, "dumb") == 0);
}

void nib_view_init(struct nib_view *view, bool colour)
{
    colour = colour && colour_allowed();
    *view = (struct nib_view){.colour_out = colour && isatty(STDOUT_FILENO),
                              .colour_err = colour && isatty(STDERR_FILENO),
                              .aside = isatty(STDOUT_FILENO) ? stdout : stderr};
}

static FILE *stream_of(const struct nib_view *view, enum nib_view_part part)
{
    return part == NIB_VIEW_REASONING ? view->aside : stdout;
}

static bool dims(const struct nib_view *view, enum nib_view_part part)
{
    return part == NIB_VIEW_REASONING && (view->aside == stdout ? view->colour_out : view->colour_err);
}

/* Closes the part being printed, with `gap` empty lines on its stream. */
static void close_part(struct nib_view *view, int gap)
{
    if (view->part == NIB_VIEW_NONE)
        return;
    FILE *out = stream_of(view, view->part);
    if (dims(view, view->part))
        (void)fputs(PLAIN, out);
    if (view->line_open)
        (void)fputc('\n', out);
    for (; gap > 0; gap--)
        (void)fputc('\n', out);
    (void)fflush(out);
    view->part = NIB_VIEW_NONE;
    view->line_open = false;
}

/* A part begins; calls do so each time. */
static void open_part(struct nib_view *view, enum nib_view_part part)
{
    if (view->part == part && part != NIB_VIEW_CALL)
        return;
    close_part(view, view->part == NIB_VIEW_CALL ? 0 : 1);
    view->part = part;
    if (dims(view, part))
        (void)fputs(DIM, stream_of(view, part));
}

static void print(struct nib_view *view, const char *text, size_t bytes)
{
    FILE *out = stream_of(view, view->part);
    nib_clean_print(out, text, bytes);
    if (bytes)
        view->line_open = text[bytes - 1] != '\n';
    (void)fflush(out);
}

void nib_view_reasoning(struct nib_view *view, const char *text, size_t bytes)
{
    open_part(view, NIB_VIEW_REASONING);
    print(view, text, bytes);
}

void nib_view_content(struct nib_view *view, const char *text, size_t bytes)
{
    open_part(view, NIB_VIEW_CONTENT);
    print(view, text, bytes);
}

void nib_view_call(struct nib_view *view, const char *name, size_t bytes)
{
    open_part(view, NIB_VIEW_CALL);
    print(view, "[call] ", 7);
    print(view, name, bytes);
    print(view, " ", 1);
}

void nib_view_arguments(struct nib_view *view, const char *text, size_t bytes)
{
    if (view->part != NIB_VIEW_CALL)
        open_part(view, NIB_VIEW_CALL);
    print(view, text, bytes);
}

void nib_view_end(struct nib_view *view)
{
    close_part(view, 0);
    (void)fflush(stdout);
}

void nib_view_stats(const struct nib_view *view, const struct nib_client_stats *s)
{
    const char *dim = view->colour_err ? DIM : "", *plain = view->colour_err ? PLAIN : "";
    double answer_s = s->total_s - s->first_s;
    (void)fprintf(stderr, "%s[", dim);
    if (s->prompt_tokens)
        (void)fprintf(stderr, "%u prompt tokens, ", s->prompt_tokens);
    if (s->first_s > 0)
        (void)fprintf(stderr, "first text after %.2f s, ", s->first_s);
    if (s->first_s > 0 && s->completion_tokens > 1 && answer_s > 0)
        (void)fprintf(stderr, "%u tokens at %.1f tokens/s, ", s->completion_tokens,
                      (s->completion_tokens - 1) / answer_s);
    const char *finish = *s->finish ? s->finish : "stopped";
    nib_clean_print(stderr, finish, strlen(finish));
    (void)fprintf(stderr, "]%s\n", plain);
}

void nib_view_say(const char *text)
{
    (void)fflush(stdout);
    nib_clean_print(stderr, text, strlen(text));
    (void)fputc('\n', stderr);
}
