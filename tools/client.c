/* tools/client.c: owns one libcurl handle a call and the text that has come so far.
 * Limits: NIB_MAX_BODY_BYTES for one line or body of the answer. One thread. Fails with the daemon's sentence, or curl's. */
#include "tools/client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>

#include "core/limits.h"

struct exchange {
    CURL *curl;
    const struct nib_client_sink *sink; /* NULL: collect the whole body */
    const volatile sig_atomic_t *stop;
    char *text; /* [NIB_MAX_BODY_BYTES] a body, or the unfinished line of a stream */
    size_t used;
    bool done;        /* the stream said [DONE] */
    enum nib_err err; /* why the stream was given up */
    struct nib_msg why;
    double begin_s;
    struct nib_client_stats stats;
};

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void take_usage(struct exchange *x, const json_t *chunk)
{
    const json_t *usage = json_object_get(chunk, "usage");
    if (!json_is_object(usage))
        return;
    x->stats.prompt_tokens = (uint32_t)json_integer_value(json_object_get(usage, "prompt_tokens"));
    x->stats.completion_tokens = (uint32_t)json_integer_value(json_object_get(usage, "completion_tokens"));
}

/* Feeds a string that is there and not empty. */
static void feed(struct exchange *x, const json_t *from, const char *key,
                 void (*to)(void *arg, const char *text, size_t bytes))
{
    const json_t *text = json_object_get(from, key);
    if (json_string_length(text) == 0)
        return;
    if (x->stats.first_s <= 0)
        x->stats.first_s = now_s() - x->begin_s;
    to(x->sink->arg, json_string_value(text), json_string_length(text));
}

static void take_delta(struct exchange *x, const json_t *choice)
{
    const json_t *delta = json_object_get(choice, "delta");
    feed(x, delta, "reasoning_content", x->sink->reasoning);
    feed(x, delta, "content", x->sink->content);
    size_t i;
    json_t *call;
    json_array_foreach(json_object_get(delta, "tool_calls"), i, call)
    {
        feed(x, json_object_get(call, "function"), "name", x->sink->call);
        feed(x, json_object_get(call, "function"), "arguments", x->sink->arguments);
    }
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    if (finish)
        (void)snprintf(x->stats.finish, sizeof x->stats.finish, "%s", finish);
}

static const char *error_sentence(const json_t *body)
{
    return json_string_value(json_object_get(json_object_get(body, "error"), "message"));
}

static void take_event(struct exchange *x, const char *text, size_t bytes)
{
    json_t *chunk = json_loadb(text, bytes, JSON_ALLOW_NUL, NULL);
    if (!json_is_object(chunk)) {
        x->err = nib_fail(&x->why, NIB_E_FORMAT, "the daemon sent an event that is no JSON object");
    } else if (json_object_get(chunk, "error")) {
        const char *why = error_sentence(chunk);
        x->err = nib_fail(&x->why, NIB_E_ARG, "%s", why ? why : "the daemon gave the answer up");
    } else {
        take_usage(x, chunk);
        take_delta(x, json_array_get(json_object_get(chunk, "choices"), 0));
    }
    json_decref(chunk);
}

/* One line of the stream: "data: ..." counts, all else is framing. */
static void take_line(struct exchange *x, const char *line, size_t bytes)
{
    if (bytes && line[bytes - 1] == '\r')
        bytes--;
    if (bytes < 5 || memcmp(line, "data:", 5) != 0)
        return;
    size_t skip = bytes > 5 && line[5] == ' ' ? 6 : 5;
    if (bytes - skip == 6 && memcmp(line + skip, "[DONE]", 6) == 0)
        x->done = true;
    else
        take_event(x, line + skip, bytes - skip);
}

static bool is_stream(const struct exchange *x)
{
    long status = 0;
    (void)curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    return x->sink && status == 200;
}

/* Takes the lines that are whole now; `fresh` bytes at the end have not been searched. */
static void take_lines(struct exchange *x, size_t fresh)
{
    const char *line = x->text, *end = x->text + x->used, *from = end - fresh, *newline;
    while (!x->err && (newline = memchr(from, '\n', (size_t)(end - from)))) {
        take_line(x, line, (size_t)(newline - line));
        from = line = newline + 1;
    }
    x->used = (size_t)(end - line);
    memmove(x->text, line, x->used);
}

static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct exchange *x = arg;
    size_t bytes = size * count;
    if (bytes > NIB_MAX_BODY_BYTES - x->used) {
        x->err =
            nib_fail(&x->why, NIB_E_LIMIT, "the daemon's answer has a part of more than %u bytes", NIB_MAX_BODY_BYTES);
        return 0;
    }
    memcpy(x->text + x->used, data, bytes);
    x->used += bytes;
    if (is_stream(x))
        take_lines(x, bytes);
    return x->err ? 0 : bytes;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct exchange *x = arg;
    (void)a, (void)b, (void)c, (void)d;
    return x->stop && *x->stop;
}

/* The sentence of an OpenAI-shaped error body, or a general one. */
static enum nib_err refused(const struct exchange *x, long status, struct nib_msg *msg)
{
    json_t *body = json_loadb(x->text, x->used, 0, NULL);
    const char *text = error_sentence(body);
    enum nib_err err = nib_fail(msg, NIB_E_ARG, "%s (status %ld)", text ? text : "the daemon refused", status);
    json_decref(body);
    return err;
}

/* What the end of the transfer means. */
static enum nib_err judge(const struct exchange *x, CURLcode code, const char *socket, struct nib_msg *msg)
{
    long status = 0;
    (void)curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    if (x->err)
        return nib_fail(msg, x->err, "%s", x->why.text);
    if (x->done)
        return NIB_OK;
    if (code == CURLE_ABORTED_BY_CALLBACK)
        return nib_fail(msg, NIB_E_STATE, "stopped");
    if (code == CURLE_COULDNT_CONNECT)
        return nib_fail(msg, NIB_E_IO, "no nibbled answers on %s; is it running, and may this user connect?", socket);
    if (code != CURLE_OK)
        return nib_fail(msg, NIB_E_IO, "the connection to %s broke: %s", socket, curl_easy_strerror(code));
    if (status != 200)
        return refused(x, status, msg);
    if (x->sink)
        return nib_fail(msg, NIB_E_IO, "the answer broke off before its end");
    return NIB_OK;
}

static enum nib_err perform(struct exchange *x, const char *socket, const char *path, const char *body,
                            struct nib_msg *msg)
{
    char url[256];
    if (strlen(socket) >= sizeof((struct sockaddr_un *)0)->sun_path)
        return nib_fail(msg, NIB_E_ARG, "the socket's path has %zu bytes, allowed are %zu", strlen(socket),
                        sizeof((struct sockaddr_un *)0)->sun_path - 1);
    (void)snprintf(url, sizeof url, "http://localhost%s", path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    headers = curl_slist_append(headers, "Expect:"); /* no round trip before a large body */
    curl_easy_setopt(x->curl, CURLOPT_UNIX_SOCKET_PATH, socket);
    curl_easy_setopt(x->curl, CURLOPT_URL, url);
    curl_easy_setopt(x->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(x->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(x->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(x->curl, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(x->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(x->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(x->curl, CURLOPT_XFERINFODATA, x);
    curl_easy_setopt(x->curl, CURLOPT_NOSIGNAL, 1L);
    if (body)
        curl_easy_setopt(x->curl, CURLOPT_POSTFIELDS, body);
    x->begin_s = now_s();
    CURLcode code = curl_easy_perform(x->curl);
    x->stats.total_s = now_s() - x->begin_s;
    curl_slist_free_all(headers);
    return judge(x, code, socket, msg);
}

static enum nib_err begin(struct exchange *x, struct nib_msg *msg)
{
    x->curl = curl_easy_init();
    x->text = malloc(NIB_MAX_BODY_BYTES);
    if (!x->curl || !x->text)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for a connection");
    return NIB_OK;
}

static void end(struct exchange *x)
{
    curl_easy_cleanup(x->curl);
    free(x->text);
}

enum nib_err nib_client_chat(const char *socket, json_t *request, const struct nib_client_sink *sink,
                             const volatile sig_atomic_t *stop, struct nib_client_stats *ret_stats, struct nib_msg *msg)
{
    struct exchange x = {.sink = sink, .stop = stop};
    json_object_set_new(request, "stream", json_true());
    json_object_set_new(request, "stream_options", json_pack("{s:b}", "include_usage", 1));
    char *body = json_dumps(request, JSON_COMPACT);
    enum nib_err err = body ? begin(&x, msg) : nib_fail(msg, NIB_E_NOMEM, "no memory for the request");
    if (!err)
        err = perform(&x, socket, "/v1/chat/completions", body, msg);
    if (!err || err == NIB_E_STATE)
        *ret_stats = x.stats;
    end(&x);
    free(body);
    return err;
}

enum nib_err nib_client_get(const char *socket, const char *path, json_t **ret_json, struct nib_msg *msg)
{
    struct exchange x = {0};
    enum nib_err err = begin(&x, msg);
    if (!err)
        err = perform(&x, socket, path, NULL, msg);
    json_t *json = err ? NULL : json_loadb(x.text, x.used, 0, NULL);
    if (!err && !json)
        err = nib_fail(msg, NIB_E_FORMAT, "the daemon's answer to %s is no JSON", path);
    end(&x);
    if (!err)
        *ret_json = json;
    return err;
}
