/* tools/chat.c: `nibble chat`: a conversation with a running nibbled, in the terminal or as one question.
 * Owns the conversation (a JSON array of messages). One thread. Ctrl-C stops the answer, Ctrl-D ends the chat; what came
 * before a stop stays in the conversation. Fails with the daemon's sentence. */
#include <getopt.h>
#include <histedit.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/limits.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/units.h"

struct chat {
    const char *socket;
    const char *effort; /* NULL: the daemon's default */
    json_t *messages;
    json_t *system; /* message or NULL */
    bool colour;
    bool quiet;          /* no statistics */
    bool dimmed;         /* reasoning is being printed */
    uint32_t max_tokens; /* 0: the daemon's default */
    char *answer;        /* content so far, [NIB_MAX_BODY_BYTES + 1] */
    size_t answer_bytes;
};

static volatile sig_atomic_t stop_asked;

static void on_interrupt(int signal)
{
    (void)signal;
    stop_asked = 1;
}

static void set_dim(struct chat *c, bool dim)
{
    if (dim == c->dimmed)
        return;
    c->dimmed = dim;
    if (c->colour)
        (void)fputs(dim ? "\033[2m" : "\033[0m", stdout);
    if (!dim)
        (void)fputs("\n\n", stdout);
}

static void on_reasoning(void *arg, const char *text)
{
    struct chat *c = arg;
    set_dim(c, true);
    (void)fputs(text, stdout);
    (void)fflush(stdout);
}

static void on_content(void *arg, const char *text)
{
    struct chat *c = arg;
    set_dim(c, false);
    (void)fputs(text, stdout);
    (void)fflush(stdout);
    size_t bytes = strlen(text);
    if (bytes <= NIB_MAX_BODY_BYTES - c->answer_bytes) {
        memcpy(c->answer + c->answer_bytes, text, bytes + 1);
        c->answer_bytes += bytes;
    }
}

static void on_tool_call(void *arg, const char *name, const char *arguments)
{
    struct chat *c = arg;
    set_dim(c, false);
    if (name)
        (void)printf("[call] %s ", name);
    (void)fputs(arguments, stdout);
    (void)fflush(stdout);
}

static void print_stats(const struct chat *c, const struct nib_client_stats *s)
{
    if (c->quiet)
        return;
    (void)fflush(stdout);
    double answer_s = s->total_s - s->first_s;
    (void)fprintf(stderr, "%s[%u prompt tokens, first text after %.2f s", c->colour ? "\033[2m" : "", s->prompt_tokens,
                  s->first_s);
    if (s->completion_tokens > 1 && answer_s > 0)
        (void)fprintf(stderr, ", %u tokens at %.1f tokens/s", s->completion_tokens,
                      (s->completion_tokens - 1) / answer_s);
    (void)fprintf(stderr, "%s%s]%s\n", *s->finish ? ", " : ", stopped", s->finish, c->colour ? "\033[0m" : "");
}

/* Asks with the conversation as it is and appends the answer; on refusal the question is taken back. */
static enum nib_err ask(struct chat *c, const char *question, struct nib_msg *msg)
{
    json_array_append_new(c->messages, json_pack("{s:s, s:s}", "role", "user", "content", question));
    json_t *all = json_array();
    if (c->system)
        json_array_append(all, c->system);
    json_array_extend(all, c->messages);
    json_t *request = json_pack("{s:o}", "messages", all);
    if (c->effort)
        json_object_set_new(request, "reasoning_effort", json_string(c->effort));
    if (c->max_tokens)
        json_object_set_new(request, "max_completion_tokens", json_integer(c->max_tokens));
    struct nib_client_sink sink = {on_reasoning, on_content, on_tool_call, c};
    struct nib_client_stats stats = {0};
    c->answer_bytes = 0;
    c->answer[0] = 0;
    stop_asked = 0;
    enum nib_err err = nib_client_chat(c->socket, request, &sink, &stop_asked, &stats, msg);
    json_decref(request);
    set_dim(c, false);
    if (err && err != NIB_E_STATE) {
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
        return err;
    }
    (void)putchar('\n');
    print_stats(c, &stats);
    json_array_append_new(c->messages,
                          json_pack("{s:s, s:s%}", "role", "assistant", "content", c->answer, c->answer_bytes));
    return NIB_OK;
}

static void set_system(struct chat *c, const char *text)
{
    json_decref(c->system);
    c->system = *text ? json_pack("{s:s, s:s}", "role", "system", "content", text) : NULL;
}

static bool set_effort(struct chat *c, const char *level)
{
    static const char *const levels[] = {"low", "medium", "high"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(level, levels[i]) == 0) {
            c->effort = levels[i];
            return true;
        }
    }
    (void)fprintf(stderr, "effort is low, medium or high\n");
    return false;
}

static void print_models(const struct chat *c)
{
    json_t *models;
    struct nib_msg msg;
    if (nib_client_get(c->socket, "/v1/models", &models, &msg)) {
        (void)fprintf(stderr, "%s\n", msg.text);
        return;
    }
    (void)json_dumpf(models, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(models);
}

/* A line that begins with '/'. False: end the chat. */
static bool command(struct chat *c, const char *line)
{
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0)
        return false;
    if (strcmp(line, "/reset") == 0)
        json_array_clear(c->messages);
    else if (strcmp(line, "/models") == 0)
        print_models(c);
    else if (strncmp(line, "/effort ", 8) == 0)
        (void)set_effort(c, line + 8);
    else if (strncmp(line, "/system", 7) == 0)
        set_system(c, line[7] == ' ' ? line + 8 : "");
    else
        (void)fprintf(stderr, "/effort low|medium|high, /system TEXT, /reset, /models, /quit\n");
    return true;
}

static char *prompt_text(EditLine *edit)
{
    static char text[] = "> ";
    (void)edit;
    return text;
}

static int converse(struct chat *c)
{
    EditLine *edit = el_init("nibble", stdin, stdout, stderr);
    History *lines = history_init();
    HistEvent event;
    if (!edit || !lines) {
        (void)fprintf(stderr, "nibble chat: the terminal cannot be used\n");
        return NIB_EXIT_FAILED;
    }
    history(lines, &event, H_SETSIZE, 1000);
    el_set(edit, EL_PROMPT, prompt_text);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, lines);
    const char *line;
    int count;
    while ((line = el_gets(edit, &count)) && count > 0) {
        char *text = strndup(line, strcspn(line, "\n"));
        struct nib_msg msg;
        if (!text)
            break;
        if (*text)
            history(lines, &event, H_ENTER, line);
        bool on = true;
        if (*text == '/')
            on = command(c, text);
        else if (*text && ask(c, text, &msg))
            (void)fprintf(stderr, "%s\n", msg.text);
        free(text);
        if (!on)
            break;
    }
    history_end(lines);
    el_end(edit);
    return NIB_EXIT_OK;
}

/* Returns an exit code, or -1 to go on with argv[optind]. */
static int parse_args(int argc, char **argv, struct chat *c)
{
    static const struct option longs[] = {{"socket", required_argument, 0, 's'},
                                          {"effort", required_argument, 0, 'e'},
                                          {"system", required_argument, 0, 'y'},
                                          {"max-tokens", required_argument, 0, 'm'},
                                          {"no-color", no_argument, 0, 'n'},
                                          {"quiet", no_argument, 0, 'q'},
                                          {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        bool good = true;
        if (option == 's')
            c->socket = optarg;
        else if (option == 'e')
            good = set_effort(c, optarg);
        else if (option == 'y')
            set_system(c, optarg);
        else if (option == 'm')
            good = nib_parse_count(optarg, NIB_MAX_CTX_TOKENS, &c->max_tokens);
        else if (option == 'n')
            c->colour = false;
        else if (option == 'q')
            c->quiet = true;
        else
            good = false;
        if (!good)
            return NIB_EXIT_USAGE;
    }
    return optind + 1 < argc ? NIB_EXIT_USAGE : -1;
}

int nib_cmd_chat(int argc, char **argv)
{
    const char *socket = getenv("NIBBLED_SOCKET");
    struct chat c = {.socket = socket ? socket : NIB_DEFAULT_SOCKET,
                     .colour = isatty(STDOUT_FILENO) && !getenv("NO_COLOR"),
                     .messages = json_array(),
                     .answer = malloc(NIB_MAX_BODY_BYTES + 1)};
    int code = c.messages && c.answer ? parse_args(argc, argv, &c) : NIB_EXIT_FAILED;
    if (code < 0) {
        struct sigaction action = {.sa_handler = on_interrupt};
        (void)sigaction(SIGINT, &action, NULL);
        struct nib_msg msg;
        code = NIB_EXIT_OK;
        if (optind == argc) {
            code = converse(&c);
        } else if (ask(&c, argv[optind], &msg)) {
            (void)fprintf(stderr, "nibble chat: %s\n", msg.text);
            code = NIB_EXIT_FAILED;
        }
    }
    json_decref(c.messages);
    json_decref(c.system);
    free(c.answer);
    return code;
}
