/* appliance/conn.c: libmicrohttpd and the table of connections: request heads and bodies, deadlines,
 * hang-ups, suspended connections. Limits: limits.connections, limits.bodies, limits.body_bytes and
 * the time.* keys. Front thread. A client that breaks a limit is answered or cut off. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "appliance/front.h"
#include "appliance/log.h"

#define NIB_HALF_MS    200         /* what was sent before a half-close is surely read by then */
#define NIB_HEAD_BYTES (32u << 10) /* libmicrohttpd's memory a connection: bounds the head */

static struct nib_conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

static void set_phase(struct nib_conn *conn, enum nib_phase_http phase)
{
    conn->phase = phase;
    conn->since_ms = nib_now_ms();
}

char *nib_conn_body(struct nib_front *front, const struct nib_conn *conn, size_t *ret_bytes)
{
    if (conn->body == NIB_BODY_SMALL) {
        *ret_bytes = NIB_SMALL_BODY_BYTES;
        return front->mem.small_bodies + (size_t)(conn - front->conns) * NIB_SMALL_BODY_BYTES;
    }
    NIB_MUST(conn->body >= 0);
    *ret_bytes = front->config->body_bytes;
    return front->mem.bodies + (size_t)conn->body * front->config->body_bytes;
}

void nib_conn_release_body(struct nib_front *front, struct nib_conn *conn)
{
    if (conn->body >= 0)
        front->body_used[conn->body] = false;
    conn->body = NIB_BODY_NONE;
    conn->body_used = 0;
}

bool nib_conn_grow_body(struct nib_front *front, struct nib_conn *conn, struct nib_refusal *ret)
{
    size_t bytes;
    if (conn->body >= 0)
        return true;
    for (uint32_t i = 0; i < front->mem.bodies_count; i++)
        if (!front->body_used[i]) {
            const char *small = nib_conn_body(front, conn, &bytes);
            front->body_used[i] = true;
            conn->body = (int32_t)i;
            memcpy(nib_conn_body(front, conn, &bytes), small, conn->body_used);
            return true;
        }
    nib_refuse(ret, 503, "busy", NULL, "%u large request bodies are being received already", front->mem.bodies_count);
    ret->retry_s = 1;
    return false;
}

void nib_conn_suspend(struct nib_conn *conn)
{
    if (conn->suspended)
        return;
    conn->suspended = true;
    MHD_suspend_connection(conn->mhd);
}

void nib_conn_resume(struct nib_front *front, struct nib_conn *conn)
{
    (void)front;
    if (!conn->suspended)
        return;
    conn->suspended = false;
    conn->since_ms = nib_now_ms();
    MHD_resume_connection(conn->mhd);
}

void nib_conn_kill(struct nib_conn *conn)
{
    (void)shutdown(conn->fd, SHUT_RDWR); /* libmicrohttpd then sees the end and closes */
}

static uint64_t mark_of(const struct nib_front *front, const struct nib_conn *conn)
{
    return (uint64_t)conn->generation << 32 | (uint64_t)(conn - front->conns);
}

/* The client closed: both ways, and nobody will read an answer; or it only sends no more. */
void nib_conn_hangup(struct nib_front *front, uint64_t mark, bool both_ways)
{
    uint32_t index = (uint32_t)mark;
    if (index >= NIB_MAX_CONNS)
        return;
    struct nib_conn *conn = &front->conns[index];
    if (!conn->used || mark_of(front, conn) != mark)
        return;
    if (!both_ways) {
        conn->half_closed = true;
        return;
    }
    conn->gone = true;
    (void)epoll_ctl(front->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
    nib_generate_detach(front, conn);
    if (conn->suspended)
        nib_conn_resume(front, conn);
}

static void opened(struct nib_front *front, struct MHD_Connection *mhd, void **context)
{
    uint32_t i = 0;
    while (i < NIB_MAX_CONNS && front->conns[i].used)
        i++;
    NIB_MUST(i < NIB_MAX_CONNS); /* libmicrohttpd keeps limits.connections */
    struct nib_conn *conn = &front->conns[i];
    uint32_t generation = conn->generation + 1;
    memset(conn, 0, sizeof *conn);
    conn->generation = generation;
    conn->used = true;
    conn->mhd = mhd;
    conn->body = NIB_BODY_NONE;
    conn->job = -1;
    conn->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    set_phase(conn, NIB_HTTP_IDLE);
    struct nib_msg msg;
    if (nib_peer_of_socket(front->config, conn->fd, &conn->peer, &msg) != NIB_OK) {
        nib_log(NIB_LOG_WARN, "%s", msg.text);
        conn->peer = (struct nib_peer){.uid = UINT32_MAX};
    }
    struct epoll_event e = {.events = EPOLLRDHUP | EPOLLET, .data.u64 = mark_of(front, conn)};
    (void)epoll_ctl(front->epoll_fd, EPOLL_CTL_ADD, conn->fd, &e);
    front->metrics.connections++;
    front->metrics.connections_total++;
    *context = conn;
}

static void notify_connection(void *cls, struct MHD_Connection *mhd, void **context,
                              enum MHD_ConnectionNotificationCode code)
{
    struct nib_front *front = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        opened(front, mhd, context);
        return;
    }
    struct nib_conn *conn = *context;
    if (!conn)
        return;
    nib_generate_detach(front, conn);
    nib_conn_release_body(front, conn);
    conn->used = false;
    front->metrics.connections--;
}

/* One request is over, answered or not. */
static void notify_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                             enum MHD_RequestTerminationCode code)
{
    struct nib_front *front = cls;
    struct nib_conn *conn = conn_of(mhd);
    (void)con_cls;
    (void)code;
    if (!conn)
        return;
    nib_generate_detach(front, conn);
    nib_conn_release_body(front, conn);
    conn->route = NULL;
    conn->dispatched = false;
    conn->refusal.status = 0;
    set_phase(conn, NIB_HTTP_IDLE);
}

/* libmicrohttpd read a request line. */
static void *head_began(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct nib_conn *conn = conn_of(mhd);
    (void)cls;
    (void)uri;
    if (conn)
        set_phase(conn, NIB_HTTP_HEAD);
    return NULL;
}

struct header_facts {
    uint32_t lengths, encodings, codings, hosts;
    bool length_ok, chunked;
    const char *type;
};

static enum MHD_Result look_at(void *cls, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct header_facts *f = cls;
    (void)kind;
    const char *v = value ? value : "";
    if (!strcasecmp(key, "Content-Length")) {
        size_t n = strlen(v);
        f->lengths++;
        f->length_ok = n >= 1 && n <= 15 && strspn(v, "0123456789") == n;
    } else if (!strcasecmp(key, "Transfer-Encoding")) {
        f->encodings++;
        f->chunked = !strcasecmp(v, "chunked");
    } else if (!strcasecmp(key, "Content-Encoding")) {
        f->codings += strcasecmp(v, "identity") != 0;
    } else if (!strcasecmp(key, "Host")) {
        f->hosts++;
    } else if (!strcasecmp(key, "Content-Type")) {
        f->type = v;
    }
    return MHD_YES;
}

static bool is_json(const char *type)
{
    static const char json[] = "application/json";
    size_t n = sizeof json - 1;
    return type && !strncasecmp(type, json, n) && (type[n] == '\0' || type[n] == ';' || type[n] == ' ');
}

/* Whether requests are taken. The first of a connection to systemd's socket still is while the daemon drains: see
 * front.c. */
static bool serving(const struct nib_front *front, const struct nib_conn *conn)
{
    bool late = front->draining && !(front->passed && conn->requests == 1);
    return front->attached && !late && !front->failed;
}

/* Whether a request waits for the model: on systemd's socket it does, like those that are not accepted yet. */
static bool must_wait(const struct nib_front *front, const struct nib_conn *conn, const char *url)
{
    const struct nib_route *route = nib_route_find(url);
    bool loading = !front->attached && !front->failed && !front->draining;
    return front->passed && loading && !conn->gone && route && !route->early;
}

/* Everything that the head alone decides. false: conn->refusal says why. */
static bool head_ok(struct nib_front *front, struct nib_conn *conn, const char *method)
{
    struct nib_refusal *r = &conn->refusal;
    struct header_facts f = {0};
    (void)MHD_get_connection_values(conn->mhd, MHD_HEADER_KIND, look_at, &f);
    if (f.lengths > 1 || (f.lengths && !f.length_ok))
        return nib_refuse(r, 400, "bad_framing", NULL, "Content-Length must be given once, in decimal digits");
    if (f.lengths && f.encodings)
        return nib_refuse(r, 400, "bad_framing", NULL, "Content-Length and Transfer-Encoding exclude each other");
    if (f.encodings > 1 || (f.encodings && !f.chunked))
        return nib_refuse(r, 501, "bad_framing", NULL, "Transfer-Encoding must be \"chunked\"");
    if (f.hosts > 1)
        return nib_refuse(r, 400, "bad_framing", NULL, "Host must be given once");
    if (!conn->peer.allowed) {
        front->metrics.peers_refused++;
        return nib_refuse(r, 403, "peer_refused", NULL,
                          "user id %u may not use this server (see peers in its configuration)", conn->peer.uid);
    }
    if (!conn->route)
        return nib_refuse(r, 404, "not_found", NULL, "there is nothing at this path");
    if (strcmp(conn->route->method, method) != 0)
        return nib_refuse(r, 405, "method_not_allowed", NULL, "this path takes %s only", conn->route->method);
    if (!conn->route->early && !serving(front, conn)) {
        bool loading = !front->attached && !front->failed;
        nib_refuse(r, 503, loading ? "loading" : "shutting_down", NULL, "%s",
                   loading ? "the model is still being loaded" : "the server is shutting down");
        r->retry_s = loading ? 5 : 1;
        return false;
    }
    if (strcmp(method, "POST") != 0)
        return true;
    if (f.codings)
        return nib_refuse(r, 415, "unsupported_encoding", NULL, "Content-Encoding is not supported; send plain JSON");
    if (!is_json(f.type))
        return nib_refuse(r, 415, "unsupported_type", NULL, "Content-Type must be application/json");
    const char *length = MHD_lookup_connection_value(conn->mhd, MHD_HEADER_KIND, "Content-Length");
    if (length && strtoull(length, NULL, 10) > front->config->body_bytes)
        return nib_refuse(r, 413, "request_too_large", NULL, "the body has %s bytes; at most %llu are allowed", length,
                          (unsigned long long)front->config->body_bytes);
    conn->body = NIB_BODY_SMALL;
    return true;
}

/* Whether a refused request's body is read and dropped first, so that a client that writes before it
 * reads gets its answer. Not when the framing is in doubt, or the client asked before sending. */
static bool drop_body(const struct nib_conn *conn)
{
    const char *length = MHD_lookup_connection_value(conn->mhd, MHD_HEADER_KIND, "Content-Length");
    if (!strcmp(conn->refusal.code, "bad_framing") || MHD_lookup_connection_value(conn->mhd, MHD_HEADER_KIND, "Expect"))
        return false;
    return !length || strtoull(length, NULL, 10) <= NIB_MAX_DROP_BYTES;
}

static enum MHD_Result begin_request(struct nib_front *front, struct nib_conn *conn, const char *url,
                                     const char *method)
{
    conn->route = nib_route_find(url);
    conn->received_us = nib_now_us();
    conn->refusal.status = 0;
    conn->status = 0;
    conn->requests++;
    conn->counted = conn->route && conn->route->generates && !strcmp(method, conn->route->method);
    if (conn->counted) {
        front->metrics.received++;
        front->metrics.active++;
    }
    set_phase(conn, NIB_HTTP_BODY);
    if (!head_ok(front, conn, method) && !drop_body(conn))
        return nib_respond_error(front, conn, &conn->refusal);
    return MHD_YES;
}

static enum MHD_Result take_upload(struct nib_front *front, struct nib_conn *conn, const char *data, size_t *bytes)
{
    size_t n = *bytes;
    *bytes = 0;
    if (conn->body == NIB_BODY_NONE || conn->refusal.status)
        return MHD_YES; /* of a refused request, or of a GET: read and dropped */
    if (n > front->config->body_bytes - conn->body_used) {
        nib_refuse(&conn->refusal, 413, "request_too_large", NULL, "the body has more than %llu bytes",
                   (unsigned long long)front->config->body_bytes);
        return MHD_YES; /* dropped up to its end or the deadline, then answered */
    }
    size_t room;
    char *body = nib_conn_body(front, conn, &room);
    if (n > room - conn->body_used) {
        if (!nib_conn_grow_body(front, conn, &conn->refusal))
            return MHD_YES;
        body = nib_conn_body(front, conn, &room);
    }
    memcpy(body + conn->body_used, data, n);
    conn->body_used += n;
    return MHD_YES;
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *bytes, void **con_cls)
{
    struct nib_front *front = cls;
    struct nib_conn *conn = conn_of(mhd);
    (void)version;
    if (!conn)
        return MHD_NO;
    if (!*con_cls) {
        if (must_wait(front, conn, url)) {
            nib_conn_suspend(conn); /* libmicrohttpd makes this same call again after the resume */
            return MHD_YES;
        }
        *con_cls = conn;
        return begin_request(front, conn, url, method);
    }
    if (*bytes)
        return take_upload(front, conn, data, bytes);
    if (conn->dispatched)
        return nib_generate_resumed(front, conn);
    conn->dispatched = true;
    set_phase(conn, NIB_HTTP_WAIT);
    if (conn->refusal.status)
        return nib_respond_error(front, conn, &conn->refusal);
    return conn->route->serve(front, conn);
}

/* The longest a phase may last; 0 = no end. */
static uint64_t phase_ms(const struct nib_config *c, enum nib_phase_http phase)
{
    switch (phase) {
    case NIB_HTTP_IDLE:
        return c->idle_ms_max;
    case NIB_HTTP_HEAD:
        return c->head_ms_max;
    case NIB_HTTP_BODY:
        return c->body_ms_max;
    case NIB_HTTP_SEND:
        return c->write_ms_max;
    case NIB_HTTP_WAIT:
        break;
    }
    return 0;
}

/* The client sent all it will ever send, libmicrohttpd has read it, and it is no whole request:
 * libmicrohttpd alone would wait on. */
static bool cut_short(struct nib_conn *conn, uint64_t now_ms)
{
    int unread = 0;
    if (!conn->half_closed || conn->phase > NIB_HTTP_BODY || now_ms < conn->since_ms + NIB_HALF_MS)
        return false;
    return ioctl(conn->fd, FIONREAD, &unread) == 0 && unread == 0;
}

void nib_conn_deadlines(struct nib_front *front, uint64_t now_ms)
{
    for (uint32_t i = 0; i < NIB_MAX_CONNS; i++) {
        struct nib_conn *conn = &front->conns[i];
        uint64_t most = phase_ms(front->config, conn->phase);
        if (!conn->used || conn->suspended)
            continue;
        bool late = most != 0 && now_ms >= conn->since_ms + most;
        if (!late && !cut_short(conn, now_ms))
            continue;
        if (late && conn->phase == NIB_HTTP_SEND)
            front->metrics.slow_readers++;
        else if (late && conn->phase != NIB_HTTP_IDLE)
            front->metrics.deadlines++;
        nib_generate_detach(front, conn);
        nib_conn_kill(conn);
        conn->since_ms = now_ms; /* once a period, should libmicrohttpd not have closed it */
    }
}

enum nib_err nib_conn_start(struct nib_front *front, struct nib_msg *msg)
{
    front->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, handle, front, MHD_OPTION_LISTEN_SOCKET,
        front->listen_fd, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)front->config->connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)NIB_HEAD_BYTES,
        MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_NOTIFY_CONNECTION, notify_connection, front,
        MHD_OPTION_NOTIFY_COMPLETED, notify_completed, front, MHD_OPTION_URI_LOG_CALLBACK, head_began, front,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    if (!front->mhd)
        return nib_fail(msg, NIB_E_IO, "libmicrohttpd could not start on the socket");
    return NIB_OK;
}
