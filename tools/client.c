/* tools/client.c: owns one libcurl handle a call and the text that has come so far.
 * Limits: NIB_MAX_BODY_BYTES for one line or body of the answer. One thread. Fails with the daemon's sentence, or curl's. */
#include "tools/client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/limits.h"

struct exchange {
    CURL *curl;
    const struct nib_client_sink *sink; /* NULL: collect the whole body */
    const volatile sig_atomic_t *stop;
    char *text; /* a body, or the unfinished line of a stream */
    size_t used;
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

static void take_tool_calls(const struct nib_client_sink *sink, const json_t *delta)
{
    size_t i;
    json_t *call;
    json_array_foreach(json_object_get(delta, "tool_calls"), i, call)
    {
        const json_t *function = json_object_get(call, "function");
        const char *arguments = json_string_value(json_object_get(function, "arguments"));
        sink->tool_call(sink->arg, json_string_value(json_object_get(function, "name")), arguments ? arguments : "");
    }
}

static void take_delta(struct exchange *x, const json_t *choice)
{
    const json_t *delta = json_object_get(choice, "delta");
    const char *reasoning = json_string_value(json_object_get(delta, "reasoning_content"));
    const char *content = json_string_value(json_object_get(delta, "content"));
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));
    bool tool = json_is_array(json_object_get(delta, "tool_calls"));
    if (x->stats.first_s <= 0 && ((reasoning && *reasoning) || (content && *content) || tool))
        x->stats.first_s = now_s() - x->begin_s;
    if (reasoning && *reasoning)
        x->sink->reasoning(x->sink->arg, reasoning);
    if (content && *content)
        x->sink->content(x->sink->arg, content);
    if (tool)
        take_tool_calls(x->sink, delta);
    if (finish)
        (void)snprintf(x->stats.finish, sizeof x->stats.finish, "%s", finish);
}

/* One line of the stream: "data: {...}" counts, all else is framing. */
static void take_line(struct exchange *x, const char *line)
{
    if (strncmp(line, "data: ", 6) != 0 || line[6] != '{')
        return;
    json_t *chunk = json_loads(line + 6, 0, NULL);
    take_usage(x, chunk);
    const json_t *choice = json_array_get(json_object_get(chunk, "choices"), 0);
    if (choice)
        take_delta(x, choice);
    json_decref(chunk);
}

static bool is_stream(const struct exchange *x)
{
    long status = 0;
    (void)curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    return x->sink && status == 200;
}

static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct exchange *x = arg;
    size_t bytes = size * count;
    if (bytes > NIB_MAX_BODY_BYTES - x->used)
        return 0;
    memcpy(x->text + x->used, data, bytes);
    x->used += bytes;
    x->text[x->used] = 0;
    if (!is_stream(x))
        return bytes;
    char *line = x->text, *end;
    while ((end = strchr(line, '\n'))) {
        *end = 0;
        take_line(x, line);
        line = end + 1;
    }
    x->used -= (size_t)(line - x->text);
    memmove(x->text, line, x->used + 1);
    return bytes;
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
    json_t *body = json_loads(x->text, 0, NULL);
    const char *text = json_string_value(json_object_get(json_object_get(body, "error"), "message"));
    enum nib_err err = nib_fail(msg, NIB_E_ARG, "%s (status %ld)", text ? text : "the daemon refused", status);
    json_decref(body);
    return err;
}

static enum nib_err perform(struct exchange *x, const char *socket, const char *path, const char *body,
                            struct nib_msg *msg)
{
    char url[256];
    (void)snprintf(url, sizeof url, "http://localhost%s", path);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
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
    long status = 0;
    (void)curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &status);
    if (code == CURLE_ABORTED_BY_CALLBACK)
        return nib_fail(msg, NIB_E_STATE, "stopped");
    if (code == CURLE_COULDNT_CONNECT)
        return nib_fail(msg, NIB_E_IO, "no nibbled answers on %s; is it running, and may this user connect?", socket);
    if (code != CURLE_OK)
        return nib_fail(msg, NIB_E_IO, "the connection to %s broke: %s", socket, curl_easy_strerror(code));
    return status == 200 ? NIB_OK : refused(x, status, msg);
}

static enum nib_err begin(struct exchange *x, struct nib_msg *msg)
{
    x->curl = curl_easy_init();
    x->text = calloc(1, NIB_MAX_BODY_BYTES + 1);
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
    json_t *json = err ? NULL : json_loads(x.text, 0, NULL);
    if (!err && !json)
        err = nib_fail(msg, NIB_E_FORMAT, "the daemon's answer to %s is no JSON", path);
    end(&x);
    if (!err)
        *ret_json = json;
    return err;
}
