/* tools/chat.c: `nibble chat`: a conversation with a running nibbled, in the terminal or as one question.
 * Owns the conversation (a JSON array of messages). One thread. Ctrl-C stops the answer, Ctrl-D ends the chat; what came
 * before a stop stays in the conversation, a question that got no whole answer for another reason is taken back. With
 * --demo it has a daemon of its own, and runs the two functions of chat_tools.h that the model may call, CALLS_MAX times
 * for one question. Fails with the daemon's sentence. */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/limits.h"
#include "tools/chat_demo.h"
#include "tools/chat_line.h"
#include "tools/chat_tools.h"
#include "tools/chat_view.h"
#include "tools/clean.h"
#include "tools/client.h"
#include "tools/commands.h"
#include "tools/units.h"

#define CALLS_MAX      4
#define CALL_BYTES_MAX 1024 /* of a call's arguments */

struct chat {
    const char *socket;
    const char *effort; /* NULL: the daemon's default */
    json_t *messages;
    json_t *system; /* message or NULL */
    bool colour;
    bool quiet;          /* no statistics */
    uint32_t max_tokens; /* 0: the daemon's default */
    struct nib_view view;
    char *answer; /* content so far, [NIB_MAX_BODY_BYTES]: more could not be sent back */
    size_t answer_bytes;
    bool demo;
    json_t *tools; /* NULL: the model gets none */
    char call_name[NIB_MAX_NAME_BYTES + 1];
    char call_arguments[CALL_BYTES_MAX + 1];
};

/* Appends to text of at most `max` bytes and its NUL; what is longer is cut. */
static void append(char *to, size_t max, const char *text, size_t bytes)
{
    size_t used = strlen(to);
    if (bytes > max - used)
        bytes = max - used;
    memcpy(to + used, text, bytes);
    to[used + bytes] = '\0';
}

static void on_interrupt(int signal)
{
    (void)signal;
    nib_chat_stop = 1;
}

static void on_reasoning(void *arg, const char *text, size_t bytes)
{
    nib_view_reasoning(&((struct chat *)arg)->view, text, bytes);
}

static void on_content(void *arg, const char *text, size_t bytes)
{
    struct chat *c = arg;
    nib_view_content(&c->view, text, bytes);
    if (bytes > NIB_MAX_BODY_BYTES - c->answer_bytes)
        return;
    for (size_t i = 0; i < bytes; i++)
        if (text[i]) /* the daemon takes no NUL back */
            c->answer[c->answer_bytes++] = text[i];
}

static void on_call(void *arg, const char *name, size_t bytes)
{
    struct chat *c = arg;
    nib_view_call(&c->view, name, bytes);
    append(c->call_name, NIB_MAX_NAME_BYTES, name, bytes);
}

static void on_arguments(void *arg, const char *text, size_t bytes)
{
    struct chat *c = arg;
    nib_view_arguments(&c->view, text, bytes);
    append(c->call_arguments, CALL_BYTES_MAX, text, bytes);
}

static json_t *make_request(const struct chat *c)
{
    json_t *all = json_array();
    if (c->system)
        json_array_append(all, c->system);
    json_array_extend(all, c->messages);
    json_t *request = json_pack("{s:o}", "messages", all);
    if (c->effort)
        json_object_set_new(request, "reasoning_effort", json_string(c->effort));
    if (c->max_tokens)
        json_object_set_new(request, "max_completion_tokens", json_integer(c->max_tokens));
    if (c->tools)
        json_object_set(request, "tools", c->tools);
    if (c->demo)
        json_object_set_new(request, "temperature", json_integer(0));
    return request;
}

/* One request with the conversation as it is. */
static enum nib_err exchange(struct chat *c, struct nib_client_stats *stats, struct nib_msg *msg)
{
    json_t *request = make_request(c);
    struct nib_client_sink sink = {on_reasoning, on_content, on_call, on_arguments, c};
    *stats = (struct nib_client_stats){0};
    c->answer_bytes = 0;
    c->call_name[0] = c->call_arguments[0] = '\0';
    enum nib_err err = nib_client_chat(c->socket, request, &sink, &nib_chat_stop, stats, msg);
    json_decref(request);
    nib_view_end(&c->view);
    if (!c->quiet && (!err || err == NIB_E_STATE))
        nib_view_stats(&c->view, stats);
    return err;
}

/* Runs the call that the model made; call and result become messages. */
static enum nib_err run_call(struct chat *c, int number, struct nib_msg *msg)
{
    char id[24], *result;
    enum nib_err err = nib_chat_tool_run(c->socket, c->call_name, c->call_arguments, &result, msg);
    if (err)
        return err;
    (void)snprintf(id, sizeof id, "call_%d", number);
    json_t *call = json_pack("{s:s, s:[{s:s, s:s, s:{s:s, s:s}}]}", "role", "assistant", "tool_calls", "id", id, "type",
                             "function", "function", "name", c->call_name, "arguments", c->call_arguments);
    json_array_append_new(c->messages, call);
    json_array_append_new(c->messages,
                          json_pack("{s:s, s:s, s:s}", "role", "tool", "tool_call_id", id, "content", result));
    if (!c->quiet)
        nib_view_say(result);
    free(result);
    return call ? NIB_OK : nib_fail(msg, NIB_E_FORMAT, "the model's call is not UTF-8 text");
}

/* Asks, runs the calls that the model makes if it has tools, and appends the answer, whole or stopped (NIB_E_STATE). On
 * any other failure the question is taken back. */
static enum nib_err ask(struct chat *c, const char *question, struct nib_msg *msg)
{
    size_t before = json_array_size(c->messages);
    json_t *message = json_pack("{s:s, s:s}", "role", "user", "content", question);
    if (!message)
        return nib_fail(msg, NIB_E_ARG, "the question is not UTF-8 text");
    json_array_append_new(c->messages, message);
    struct nib_client_stats stats;
    nib_chat_stop = 0;
    enum nib_err err = exchange(c, &stats, msg);
    for (int calls = 0; !err && c->tools && c->call_name[0] && calls < CALLS_MAX; calls++) {
        err = run_call(c, calls, msg);
        if (!err)
            err = exchange(c, &stats, msg);
    }
    if (err && err != NIB_E_STATE) {
        while (json_array_size(c->messages) > before)
            json_array_remove(c->messages, json_array_size(c->messages) - 1);
        return err;
    }
    json_array_append_new(c->messages,
                          json_pack("{s:s, s:s%}", "role", "assistant", "content", c->answer, c->answer_bytes));
    return err;
}

static bool set_system(struct chat *c, const char *text)
{
    json_t *message = *text ? json_pack("{s:s, s:s}", "role", "system", "content", text) : NULL;
    if (*text && !message) {
        nib_view_say("the instructions are not UTF-8 text");
        return false;
    }
    json_decref(c->system);
    c->system = message;
    return true;
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
    nib_view_say("effort is low, medium or high");
    return false;
}

/* "name: context of N tokens, N at once, N waiting", a line each. */
static void print_models(FILE *out, const json_t *models)
{
    size_t i;
    json_t *m;
    json_array_foreach(json_object_get(models, "data"), i, m)
    {
        const json_t *id = json_object_get(m, "id");
        nib_clean_print(out, json_string_value(id), json_string_length(id));
        (void)fprintf(out, ": context of %lld tokens, %lld at once, %lld waiting\n",
                      (long long)json_integer_value(json_object_get(m, "context_length")),
                      (long long)json_integer_value(json_object_get(m, "slots")),
                      (long long)json_integer_value(json_object_get(m, "queue")));
    }
}

static enum nib_err show_models(const struct chat *c, FILE *out, struct nib_msg *msg)
{
    json_t *models;
    enum nib_err err = nib_client_get(c->socket, "/v1/models", &models, msg);
    if (err)
        return err;
    print_models(out, models);
    (void)fflush(out);
    json_decref(models);
    return NIB_OK;
}

static void do_effort(struct chat *c, const char *text)
{
    if (set_effort(c, text))
        (void)fprintf(stderr, "effort is %s\n", c->effort);
}

static void do_system(struct chat *c, const char *text)
{
    if (set_system(c, text))
        nib_view_say(*text ? "the instructions are set" : "there are no instructions");
}

static void do_reset(struct chat *c, const char *text)
{
    (void)text;
    json_array_clear(c->messages);
    nib_view_say("the conversation is empty");
}

static void do_models(struct chat *c, const char *text)
{
    struct nib_msg msg;
    (void)text;
    if (show_models(c, stdout, &msg))
        nib_view_say(msg.text);
}

static void do_help(struct chat *c, const char *text)
{
    (void)c, (void)text;
    nib_view_say("/effort low|medium|high  reasoning effort from now on\n"
                 "/system TEXT             instructions for the whole conversation; none: no instructions\n"
                 "/reset                   forget the conversation, keep the instructions\n"
                 "/models                  what the daemon serves\n"
                 "/help                    this list\n"
                 "/quit                    end, as Ctrl-D does; Ctrl-C stops an answer");
}

/* A line that begins with '/'. False: end the chat. */
static bool command(struct chat *c, const char *line)
{
    static const struct {
        const char *name;
        bool text; /* takes one */
        void (*run)(struct chat *c, const char *text);
    } commands[] = {{"/effort", true, do_effort},  {"/system", true, do_system}, {"/reset", false, do_reset},
                    {"/models", false, do_models}, {"/help", false, do_help},    {"/quit", false, NULL}};
    size_t bytes = strcspn(line, " ");
    const char *text = line + bytes + strspn(line + bytes, " ");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strncmp(line, commands[i].name, bytes) != 0 || commands[i].name[bytes] || (*text && !commands[i].text))
            continue;
        if (commands[i].run)
            commands[i].run(c, text);
        return commands[i].run != NULL;
    }
    struct nib_msg msg;
    (void)nib_fail(&msg, NIB_E_ARG, "there is no command \"%s\"; /help lists them", line);
    nib_view_say(msg.text);
    return true;
}

static enum nib_err converse(struct chat *c, struct nib_msg *msg)
{
    enum nib_err err = show_models(c, stderr, msg); /* a daemon that is not there is said before the first question */
    if (!err)
        err = nib_chat_line_open(msg);
    if (err)
        return err;
    nib_view_say("/help lists the commands, Ctrl-D ends.");
    char *line;
    for (bool on = true; on && (line = nib_chat_line_read()); free(line)) {
        if (*line == '/')
            on = command(c, line);
        else if (*line && (err = ask(c, line, msg)) && err != NIB_E_STATE)
            nib_view_say(msg->text);
    }
    nib_chat_line_close();
    return NIB_OK;
}

static bool set_option(struct chat *c, int option)
{
    switch (option) {
    case 's':
        c->socket = optarg;
        return true;
    case 'e':
        return set_effort(c, optarg);
    case 'y':
        return set_system(c, optarg);
    case 'm':
        return nib_option_count("nibble chat: --max-tokens", optarg, NIB_MAX_CTX_TOKENS, &c->max_tokens);
    case 'n':
        c->colour = false;
        return true;
    case 'q':
        c->quiet = true;
        return true;
    case 'd':
        c->demo = true;
        return true;
    default:
        return false; /* getopt said why */
    }
}

static bool parse_args(int argc, char **argv, struct chat *c)
{
    static const struct option longs[] = {
        {"socket", required_argument, 0, 's'}, {"effort", required_argument, 0, 'e'},
        {"system", required_argument, 0, 'y'}, {"max-tokens", required_argument, 0, 'm'},
        {"no-color", no_argument, 0, 'n'},     {"quiet", no_argument, 0, 'q'},
        {"demo", no_argument, 0, 'd'},         {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
        if (!set_option(c, option))
            return false;
    if (optind + 1 < argc)
        (void)fprintf(stderr, "nibble chat: more than one question; put it in quotes\n");
    return optind + 1 >= argc;
}

/* The demo's own questions: one with working, one that goes on from it, one that needs a function; then the prompt, when
 * somebody is there. */
static enum nib_err show_demo(struct chat *c, struct nib_msg *msg)
{
    static const char *const questions[] = {"What is 4718 + 3925?", "And minus 2600?", "What time is it in UTC?"};
    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        (void)printf("%s> %s\n", i ? "\n" : "", questions[i]);
        (void)fflush(stdout);
        enum nib_err err = ask(c, questions[i], msg);
        if (err)
            return err;
    }
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) ? converse(c, msg) : NIB_OK;
}

static enum nib_err run_demo(struct chat *c, const char *question, struct nib_msg *msg)
{
    struct nib_chat_demo demo;
    enum nib_err err = nib_chat_demo_start(&demo, msg);
    if (err)
        return err;
    c->socket = demo.socket;
    c->tools = nib_chat_tools();
    err = question ? ask(c, question, msg) : show_demo(c, msg);
    json_decref(c->tools);
    c->tools = NULL;
    c->socket = NULL; /* the daemon's, which goes */
    nib_chat_demo_stop(&demo);
    return err;
}

static int run(struct chat *c, const char *question)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    (void)sigaction(SIGINT, &action, NULL);
    nib_view_init(&c->view, c->colour);
    struct nib_msg msg;
    enum nib_err err = c->demo ? run_demo(c, question, &msg) : question ? ask(c, question, &msg) : converse(c, &msg);
    if (err && err != NIB_E_STATE) {
        (void)fprintf(stderr, "nibble chat: ");
        nib_view_say(msg.text);
    }
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}

int nib_cmd_chat(int argc, char **argv)
{
    const char *socket = getenv("NIBBLED_SOCKET");
    struct chat c = {.socket = socket ? socket : NIB_DEFAULT_SOCKET,
                     .colour = true,
                     .messages = json_array(),
                     .answer = malloc(NIB_MAX_BODY_BYTES)};
    int code = NIB_EXIT_FAILED;
    if (c.messages && c.answer)
        code = parse_args(argc, argv, &c) ? run(&c, argv[optind]) : NIB_EXIT_USAGE;
    json_decref(c.messages);
    json_decref(c.system);
    free(c.answer);
    return code;
}
