/* appliance/respond.c: responses, whole or from a job's buffer. Owns the scratch of error bodies.
 * Limits: one error body of NIB_ERROR_BYTES. Front thread. Fails when libmicrohttpd has no memory;
 * the connection is then closed. */
#include <stdio.h>
#include <string.h>

#include "appliance/front.h"
#include "appliance/log.h"

#define NIB_ERROR_BYTES 4096
#define NIB_SEND_BLOCK  (16u << 10) /* bytes libmicrohttpd asks a stream for at once */

static void log_request(const struct nib_front *front, const struct nib_conn *conn, int status)
{
    if (!front->config->log_requests)
        return;
    nib_log(NIB_LOG_INFO, "uid %u %s %s: %d", conn->peer.uid, conn->route ? conn->route->method : "-",
            conn->route ? conn->route->path : "(unknown path)", status);
}

static enum MHD_Result queue(struct nib_front *front, struct nib_conn *conn, int status, struct MHD_Response *response)
{
    conn->status = status;
    conn->phase = NIB_HTTP_SEND;
    conn->since_ms = nib_now_ms();
    front->metrics.responses[status / 100]++;
    enum MHD_Result rc = MHD_queue_response(conn->mhd, (unsigned)status, response);
    MHD_destroy_response(response);
    return rc;
}

/* An error response closes the ledger's entry of a generation request. */
static void close_refused(struct nib_front *front, struct nib_conn *conn, int status)
{
    if (!conn->counted)
        return;
    conn->counted = false;
    front->metrics.active--;
    if (status == 500)
        front->metrics.failed++;
    else
        front->metrics.refused++;
}

static const char *error_type(int status)
{
    switch (status) {
    case 401:
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

enum MHD_Result nib_respond_error(struct nib_front *front, struct nib_conn *conn, const struct nib_refusal *r)
{
    static char text[NIB_ERROR_BYTES];
    struct nib_out out = nib_out_of(text, sizeof text);
    nib_out_text(&out, "{\"error\":{\"message\":");
    nib_out_string(&out, nib_span_of(r->msg.text, strlen(r->msg.text)));
    nib_out_fmt(&out, ",\"type\":\"%s\",\"param\":", error_type(r->status));
    if (r->param[0])
        nib_out_string(&out, nib_span_of(r->param, strlen(r->param)));
    else
        nib_out_text(&out, "null");
    nib_out_fmt(&out, ",\"code\":\"%s\"}}\n", r->code);
    struct MHD_Response *response = MHD_create_response_from_buffer(out.used, text, MHD_RESPMEM_MUST_COPY);
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, "Content-Type", "application/json");
    char number[24];
    if (r->retry_s) {
        (void)snprintf(number, sizeof number, "%llu", (unsigned long long)r->retry_s);
        (void)MHD_add_response_header(response, "Retry-After", number);
    }
    if (r->status == 405)
        (void)MHD_add_response_header(response, "Allow", conn->route->method);
    if (!strcmp(r->code, "bad_framing"))
        (void)MHD_add_response_header(response, "Connection", "close");
    close_refused(front, conn, r->status);
    log_request(front, conn, r->status);
    return queue(front, conn, r->status, response);
}

enum MHD_Result nib_respond_text(struct nib_front *front, struct nib_conn *conn, int status, const char *type,
                                 const struct nib_out *text, bool copy)
{
    if (text->full) {
        struct nib_refusal r;
        nib_refuse(&r, 413, "response_too_large", NULL, "the response has more than %zu bytes", text->bytes);
        return nib_respond_error(front, conn, &r);
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer(text->used, text->ptr, copy ? MHD_RESPMEM_MUST_COPY : MHD_RESPMEM_PERSISTENT);
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, "Content-Type", type);
    return queue(front, conn, status, response);
}

/* libmicrohttpd wants more of an answer. */
static ssize_t read_answer(void *cls, uint64_t pos, char *to, size_t max)
{
    struct nib_conn *conn = cls;
    (void)pos;
    if (!conn->answer)
        return MHD_CONTENT_READER_END_WITH_ERROR; /* cut off meanwhile */
    conn->since_ms = nib_now_ms();
    size_t n = nib_answer_read(conn->answer, to, max);
    if (n > 0)
        return (ssize_t)n;
    if (conn->answer->finished)
        return MHD_CONTENT_READER_END_OF_STREAM;
    nib_conn_suspend(conn);
    return 0;
}

enum MHD_Result nib_respond_answer(struct nib_front *front, struct nib_conn *conn)
{
    const struct nib_answer *a = conn->answer;
    struct MHD_Response *response = MHD_create_response_from_callback(a->stream ? MHD_SIZE_UNKNOWN : a->total_bytes,
                                                                      NIB_SEND_BLOCK, read_answer, conn, NULL);
    if (!response)
        return MHD_NO;
    (void)MHD_add_response_header(response, "Content-Type", a->stream ? "text/event-stream" : "application/json");
    if (a->stream)
        (void)MHD_add_response_header(response, "Cache-Control", "no-cache");
    return queue(front, conn, 200, response);
}
