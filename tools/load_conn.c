/* tools/load_conn.c: owns one socket and the text of one request. Limits: nib_load_request_max, NIB_LOAD_LINE_BYTES for an
 * event. One thread. A connection that the daemon closed between two requests is opened anew, once; all else that goes
 * wrong is told as NIB_LOAD_BROKE or as the answer's error. */
#include "tools/load_conn.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/rng.h"

#define HEAD_BYTES 512 /* the head, and the body around the prompt */
#define ID_BYTES   7   /* a token id of at most six digits, and a comma */

size_t nib_load_request_max(const struct nib_load *load)
{
    return 2 * (size_t)HEAD_BYTES + (size_t)load->prompt_tokens * ID_BYTES;
}

/* The prompt of request `index`: ids spread over all that are text. */
static size_t put_prompt(const struct nib_load *load, uint32_t index, char *to)
{
    size_t n = 0;
    uint32_t words[4];
    for (uint32_t i = 0; i < load->prompt_tokens; i++) {
        if (i % 4 == 0)
            nib_rng_draw(load->seed, index, i / 4, words);
        n += (size_t)sprintf(to + n, i ? ",%u" : "%u", words[i % 4] % load->text_ids);
    }
    return n;
}

/* The body comes first, at its place behind the longest head; then the head, so that the two touch. */
static void make_request(struct nib_load_conn *c, uint32_t index)
{
    const struct nib_load *load = c->load;
    char *body = c->request + HEAD_BYTES, head[HEAD_BYTES];
    size_t n = (size_t)sprintf(body, "{\"prompt\":[");
    n += put_prompt(load, index, body + n);
    n += (size_t)snprintf(body + n, HEAD_BYTES,
                          "],\"max_tokens\":%u,\"ignore_eos\":true,\"temperature\":%.6g,\"seed\":%llu,\"stream\":true,"
                          "\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":true}}",
                          load->answer_tokens, load->temperature,
                          (unsigned long long)((load->seed + index) & 0xffffffffffffu));
    const int head_bytes = snprintf(head, sizeof head,
                                    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                    "application/json\r\nContent-Length: %zu\r\n\r\n",
                                    n);
    memmove(c->request + head_bytes, body, n);
    memcpy(c->request, head, (size_t)head_bytes);
    c->request_bytes = (size_t)head_bytes + n;
    NIB_MUST(c->request_bytes <= c->request_max);
}

static enum nib_load_step broke(struct nib_load_conn *c, const char *what)
{
    (void)nib_fail(&c->why, NIB_E_IO, "%s", what);
    return NIB_LOAD_BROKE;
}

static enum nib_load_step call(struct nib_load_conn *c)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    const size_t n = strlen(c->load->socket);
    if (n >= sizeof addr.sun_path) {
        (void)nib_fail(&c->why, NIB_E_ARG, "the socket's path has %zu bytes, allowed are %zu", n,
                       sizeof addr.sun_path - 1);
        return NIB_LOAD_GONE;
    }
    memcpy(addr.sun_path, c->load->socket, n + 1);
    if (c->fd < 0)
        c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        return broke(c, strerror(errno));
    if (connect(c->fd, (const struct sockaddr *)&addr, sizeof addr) == 0) {
        c->state = NIB_LOAD_SENDING;
        return NIB_LOAD_GOES_ON;
    }
    if (errno == EAGAIN) {
        c->state = NIB_LOAD_CALLING;
        return NIB_LOAD_GOES_ON;
    }
    (void)nib_fail(&c->why, NIB_E_IO, "no nibbled answers on %s: %s", c->load->socket, strerror(errno));
    return NIB_LOAD_GONE;
}

void nib_load_conn_drop(struct nib_load_conn *c)
{
    if (c->fd >= 0)
        (void)close(c->fd);
    c->fd = -1;
    c->state = NIB_LOAD_IDLE;
    c->reused = false;
}

/* The daemon closed a connection that was idle, before it saw this request: another one gets it. */
static bool call_again(struct nib_load_conn *c)
{
    if (!c->reused || c->http.status || c->http.used)
        return false;
    nib_load_conn_drop(c);
    c->state = NIB_LOAD_CALLING;
    c->sent = 0;
    return true;
}

static enum nib_load_step send_more(struct nib_load_conn *c)
{
    while (c->sent < c->request_bytes) {
        const ssize_t n = send(c->fd, c->request + c->sent, c->request_bytes - c->sent, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return NIB_LOAD_GOES_ON;
        if (n < 0)
            return call_again(c) ? NIB_LOAD_GOES_ON : broke(c, strerror(errno));
        c->sent += (size_t)n;
    }
    c->state = NIB_LOAD_READING;
    return NIB_LOAD_GOES_ON;
}

static void take_text(struct nib_load_conn *c)
{
    const double gap_s = c->now_s - c->last_s;
    const uint32_t tokens = c->answer_tokens > c->text_tokens ? c->answer_tokens - c->text_tokens : 1;
    if (c->first_s <= 0) {
        c->first_s = c->now_s;
    } else if (*c->gaps_count < c->gaps_max) {
        c->gaps[*c->gaps_count] = (float)gap_s;
        c->token_gaps[(*c->gaps_count)++] = (float)(gap_s / tokens);
    }
    c->last_s = c->now_s;
    c->text_tokens = c->answer_tokens;
}

static void take_event(struct nib_load_conn *c, const char *text, size_t bytes)
{
    json_t *event = json_loadb(text, bytes, JSON_ALLOW_NUL, NULL);
    const json_t *error = json_object_get(event, "error"), *usage = json_object_get(event, "usage");
    const json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    if (!json_is_object(event) || error) {
        const char *why = json_string_value(json_object_get(error, "message"));
        c->failed = true;
        (void)nib_fail(&c->why, NIB_E_FORMAT, "%s", why ? why : "the daemon sent an event that is no JSON object");
    }
    c->finish |= json_is_string(json_object_get(choice, "finish_reason"));
    if (json_is_object(usage)) {
        c->usage |= choice == NULL; /* the last event's */
        c->prompt_tokens = (uint32_t)json_integer_value(json_object_get(usage, "prompt_tokens"));
        c->answer_tokens = (uint32_t)json_integer_value(json_object_get(usage, "completion_tokens"));
        const json_t *details = json_object_get(usage, "prompt_tokens_details");
        c->cached_tokens = (uint32_t)json_integer_value(json_object_get(details, "cached_tokens"));
    }
    if (json_string_length(json_object_get(choice, "text")))
        take_text(c);
    json_decref(event);
}

/* A refusal's body: its sentence, when it has OpenAI's shape. */
static void take_refusal(struct nib_load_conn *c, const char *text, size_t bytes)
{
    json_t *body = json_loadb(text, bytes, 0, NULL);
    const char *why = json_string_value(json_object_get(json_object_get(body, "error"), "message"));
    if (why)
        (void)nib_fail(&c->why, NIB_E_ARG, "%s (status %u)", why, c->http.status);
    json_decref(body);
}

static void take_line(void *arg, const char *line, size_t bytes)
{
    struct nib_load_conn *c = arg;
    if (c->http.status != 200)
        take_refusal(c, line, bytes);
    else if (bytes == 12 && memcmp(line, "data: [DONE]", 12) == 0)
        c->done = true;
    else if (bytes > 6 && memcmp(line, "data: ", 6) == 0)
        take_event(c, line + 6, bytes - 6);
}

static enum nib_load_step read_more(struct nib_load_conn *c)
{
    static char data[64 << 10];
    const ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return NIB_LOAD_GOES_ON;
    if (n <= 0 && call_again(c))
        return NIB_LOAD_GOES_ON;
    if (n <= 0)
        return broke(c, n == 0 ? "the connection ended before the answer did" : strerror(errno));
    c->now_s = nib_load_now_s();
    if (nib_load_http_take(&c->http, data, (size_t)n, take_line, c, &c->why) != NIB_OK)
        return NIB_LOAD_BROKE;
    if (c->http.place != NIB_LOAD_AT_END)
        return NIB_LOAD_GOES_ON;
    c->end_s = c->now_s;
    c->state = NIB_LOAD_IDLE;
    c->reused = true;
    if (c->http.closes)
        nib_load_conn_drop(c);
    return NIB_LOAD_ENDED;
}

enum nib_load_step nib_load_conn_go_on(struct nib_load_conn *c)
{
    enum nib_load_step step = NIB_LOAD_GOES_ON;
    if (c->state == NIB_LOAD_CALLING)
        step = call(c);
    if (step == NIB_LOAD_GOES_ON && c->state == NIB_LOAD_SENDING)
        step = send_more(c);
    if (step == NIB_LOAD_GOES_ON && c->state == NIB_LOAD_READING)
        step = read_more(c);
    return step;
}

enum nib_load_step nib_load_conn_begin(struct nib_load_conn *c, uint32_t index, double due_s)
{
    make_request(c, index);
    nib_load_http_begin(&c->http);
    c->sent = 0;
    c->due_s = due_s;
    c->first_s = c->last_s = c->end_s = 0;
    c->prompt_tokens = c->cached_tokens = c->answer_tokens = c->text_tokens = 0;
    c->finish = c->usage = c->done = c->failed = false;
    c->why.text[0] = '\0';
    c->state = c->fd < 0 ? NIB_LOAD_CALLING : NIB_LOAD_SENDING;
    return nib_load_conn_go_on(c);
}

enum nib_load_error nib_load_conn_error(struct nib_load_conn *c)
{
    if (c->http.status != 200) {
        if (c->why.text[0] == '\0')
            (void)nib_fail(&c->why, NIB_E_ARG, "the daemon refused with status %u", c->http.status);
        return NIB_LOAD_REFUSED;
    }
    if (c->failed)
        return NIB_LOAD_FAILED;
    if (!c->finish || !c->usage || !c->done) {
        (void)nib_fail(&c->why, NIB_E_FORMAT, "the stream ended without its last events");
        return NIB_LOAD_BROKEN;
    }
    if (c->answer_tokens != c->load->answer_tokens || c->prompt_tokens != c->load->prompt_tokens) {
        (void)nib_fail(&c->why, NIB_E_FORMAT, "asked for %u tokens of answer to %u, the daemon counts %u to %u",
                       c->load->answer_tokens, c->load->prompt_tokens, c->answer_tokens, c->prompt_tokens);
        return NIB_LOAD_SHORT;
    }
    return NIB_LOAD_ERROR_COUNT;
}
