/* The load of `nibble bench serve`: responses cut anywhere, percentiles, and every way in which a daemon can disappoint a
 * request, from a server that follows a script. */
#include "tools/load.h"

#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/harness.h"
#include "tools/load_http.h"

/* ---- responses in pieces ---- */

struct lines {
    char text[4096];
    size_t used;
};

static void take_line(void *arg, const char *line, size_t bytes)
{
    struct lines *l = arg;
    memcpy(l->text + l->used, line, bytes);
    l->used += bytes;
    l->text[l->used++] = '|';
    l->text[l->used] = '\0';
}

#define CHUNKED "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
static const char two_events[] = CHUNKED "8\r\ndata: a\n\r\n2;x=1\r\n\nd\r\nA\r\nata: bcd\n\n\r\n0\r\n\r\n";
static const char whole_body[] = "HTTP/1.1 429 Too Many\r\ncontent-length:  6\r\nConnection: close\r\n\r\na\r\nbcd";

/* Feeds `text` in pieces of which the first has `cut` bytes; the heap block ends where the piece does. */
static enum nib_err feed(struct nib_load_http *h, const char *text, size_t bytes, size_t cut, struct lines *lines,
                         struct nib_msg *msg)
{
    const size_t sizes[] = {cut, bytes - cut};
    enum nib_err err = NIB_OK;
    lines->used = 0;
    lines->text[0] = '\0';
    nib_load_http_begin(h);
    for (size_t i = 0, at = 0; i < 2 && !err; at += sizes[i++]) {
        char *piece = malloc(sizes[i] ? sizes[i] : 1);
        ck_assert_ptr_nonnull(piece);
        memcpy(piece, text + at, sizes[i]);
        err = nib_load_http_take(h, piece, sizes[i], take_line, lines, msg);
        free(piece);
    }
    return err;
}

START_TEST(a_response_may_be_cut_anywhere)
{
    static struct nib_load_http h;
    struct lines lines;
    struct nib_msg msg;
    for (size_t cut = 0; cut < sizeof two_events; cut++) {
        ck_assert_int_eq(feed(&h, two_events, sizeof two_events - 1, cut, &lines, &msg), NIB_OK);
        ck_assert_int_eq(h.place, NIB_LOAD_AT_END);
        ck_assert_uint_eq(h.status, 200);
        ck_assert(!h.closes);
        ck_assert_str_eq(lines.text, "data: a||data: bcd||");
    }
    for (size_t cut = 0; cut < sizeof whole_body; cut++) {
        ck_assert_int_eq(feed(&h, whole_body, sizeof whole_body - 1, cut, &lines, &msg), NIB_OK);
        ck_assert_int_eq(h.place, NIB_LOAD_AT_END);
        ck_assert_uint_eq(h.status, 429);
        ck_assert(h.closes);
        ck_assert_str_eq(lines.text, "a|bcd|");
    }
}
END_TEST

START_TEST(a_response_that_is_none_is_refused)
{
    static const char *const bad[] = {
        "SSH-2.0-x\r\n",
        "HTTP/1.1 2 OK\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
        CHUNKED "\r\n",
        CHUNKED "xyz\r\n",
        CHUNKED "fffffffffffff\r\n",
        CHUNKED "1\r\nab\r\n",
        CHUNKED "0\r\n\r\nHTTP",
    };
    static struct nib_load_http h;
    struct lines lines;
    struct nib_msg msg;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(feed(&h, bad[i], strlen(bad[i]), 0, &lines, &msg) == NIB_E_FORMAT, "%s", bad[i]);
    static char longer[sizeof CHUNKED + NIB_LOAD_LINE_BYTES + 100];
    size_t n = (size_t)sprintf(longer, CHUNKED "%x\r\n", NIB_LOAD_LINE_BYTES + 1);
    memset(longer + n, 'x', NIB_LOAD_LINE_BYTES + 1);
    ck_assert_int_eq(feed(&h, longer, n + NIB_LOAD_LINE_BYTES + 1, n, &lines, &msg), NIB_E_LIMIT);
    memset(longer, 'x', 2000);
    ck_assert_int_eq(feed(&h, longer, 2000, 0, &lines, &msg), NIB_E_LIMIT);
}
END_TEST

START_TEST(percentiles_are_ranks)
{
    float times[200];
    for (uint32_t i = 0; i < 200; i++)
        times[i] = (float)((i * 77) % 200 + 1);
    struct nib_load_spread s = nib_load_spread_of(times, 200);
    ck_assert_uint_eq(s.count, 200);
    ck_assert_double_eq(s.p50, 100);
    ck_assert_double_eq(s.p90, 180);
    ck_assert_double_eq(s.p99, 198);
    ck_assert_double_eq(s.max, 200);
    s = nib_load_spread_of(times, 1);
    ck_assert_double_eq(s.p50, s.max);
    s = nib_load_spread_of(times, 0);
    ck_assert(s.count == 0 && s.p50 == 0 && s.max == 0);
}
END_TEST

/* ---- a server that follows a script: one connection after another, one answer a request ---- */

#define EVENT(text) "data: {\"choices\":[{\"index\":0,\"text\":\"" text "\",\"finish_reason\":null}]}\n\n"
#define LAST        "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n"
#define USAGE(n)                                                                                                       \
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":" n                                    \
    ",\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n"
#define DONE "data: [DONE]\n\n"
#define GOOD EVENT("a") EVENT("b") EVENT("\\u0000") LAST USAGE("3") DONE

enum after { KEEP, CLOSE, STOP_LISTENING, STAY_SILENT };

struct turn {
    const char *body; /* of an event stream, a pause at each \f; or, raw, the whole response */
    bool raw;
    enum after after;
};

static struct {
    char folder[32], path[64];
    int fd;
    const struct turn *turns;
    uint32_t turns_count, served;
    pthread_t thread;
    char request[65536]; /* the last one */
} server;

/* Reads one request; false: the client closed. */
static bool read_request(int fd)
{
    size_t used = 0;
    for (;;) {
        ssize_t n = recv(fd, server.request + used, sizeof server.request - 1 - used, 0);
        if (n <= 0)
            return false;
        used += (size_t)n;
        server.request[used] = '\0';
        const char *body = strstr(server.request, "\r\n\r\n"), *length = strstr(server.request, "Content-Length: ");
        if (body && length && used == (size_t)(body + 4 - server.request) + strtoul(length + 16, NULL, 10))
            return true;
    }
}

static void send_all(int fd, const char *text, int n)
{
    for (int at = 0; at < n; at += 7) /* in pieces that no line ends with */
        ck_assert_int_gt(send(fd, text + at, (size_t)(n - at < 7 ? n - at : 7), MSG_NOSIGNAL), 0);
}

static void answer(int fd, const struct turn *turn)
{
    char text[4096];
    if (turn->raw) {
        send_all(fd, text, snprintf(text, sizeof text, "%s", turn->body));
        return;
    }
    send_all(fd, CHUNKED, (int)strlen(CHUNKED));
    for (const char *part = turn->body; *part;) {
        const int n = (int)strcspn(part, "\f");
        send_all(fd, text, snprintf(text, sizeof text, "%x\r\n%.*s\r\n", (unsigned)n, n, part));
        part += n;
        if (*part == '\f') {
            (void)nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
            part++;
        }
    }
    send_all(fd, "0\r\n\r\n", 5);
}

static void *serve(void *arg)
{
    (void)arg;
    while (server.served < server.turns_count) {
        const int fd = accept(server.fd, NULL, NULL);
        enum after after = KEEP;
        while (after == KEEP && server.served < server.turns_count && read_request(fd)) {
            const struct turn *turn = &server.turns[server.served++];
            after = turn->after;
            if (after == STAY_SILENT)
                (void)read_request(fd); /* until the client gives up */
            if (after == STOP_LISTENING) {
                (void)close(server.fd);
                (void)unlink(server.path);
            }
            if (turn->body)
                answer(fd, turn);
        }
        (void)close(fd);
    }
    return NULL;
}

static void open_server(const struct turn *turns, uint32_t count)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(server.folder, "/tmp/nib-load-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(server.folder));
    (void)snprintf(server.path, sizeof server.path, "%s/s", server.folder);
    strcpy(addr.sun_path, server.path);
    server.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(server.fd, (struct sockaddr *)&addr, sizeof addr), 0);
    ck_assert_int_eq(listen(server.fd, 128), 0);
    server.turns = turns;
    server.turns_count = count;
    server.served = 0;
    ck_assert_int_eq(pthread_create(&server.thread, NULL, serve, NULL), 0);
}

static void close_server(void)
{
    ck_assert_int_eq(pthread_join(server.thread, NULL), 0);
    (void)close(server.fd);
    (void)unlink(server.path);
    ck_assert_int_eq(rmdir(server.folder), 0);
}

static struct nib_load usual(uint32_t requests)
{
    return (struct nib_load){.socket = server.path,
                             .text_ids = 100,
                             .prompt_tokens = 5,
                             .answer_tokens = 3,
                             .temperature = 0.5,
                             .seed = 9,
                             .clients = 1,
                             .requests = requests,
                             .stall_s = 60};
}

static void check_ledger(const struct nib_load_result *r)
{
    uint32_t ended = r->finished;
    for (uint32_t i = 0; i < NIB_LOAD_ERROR_COUNT; i++)
        ended += r->errors[i];
    ck_assert_uint_eq(ended, r->sent);
}

/* One request that ends in one answer. */
static struct nib_load_result one(const struct turn *turn, double stall_s, enum nib_err wanted)
{
    struct nib_load_result r;
    struct nib_msg msg;
    open_server(turn, 1);
    struct nib_load load = usual(1);
    load.stall_s = stall_s;
    ck_assert_int_eq(nib_load_run(&load, NULL, &r, &msg), wanted);
    close_server();
    check_ledger(&r);
    ck_assert_uint_eq(r.sent, 1);
    return r;
}

#define COUNTED(text, n)                                                                                               \
    "data: {\"choices\":[{\"index\":0,\"text\":\"" text "\",\"finish_reason\":null}],\"usage\":{\"prompt_tokens\":5,"  \
    "\"completion_tokens\":" n "}}\n\n"

/* A text behind a token without a whole character is a gap of two tokens. */
START_TEST(a_gap_is_divided_by_its_tokens)
{
    const struct turn turn = {COUNTED("a", "1") "\f" COUNTED("\\u00e9", "3") LAST USAGE("3") DONE, false, KEEP};
    const struct nib_load_result r = one(&turn, 60, NIB_OK);
    ck_assert_uint_eq(r.finished, 1);
    ck_assert(r.gap.count == 1 && r.token_gap.count == 1 && r.gap.max > 0);
    ck_assert_float_eq_tol((float)r.token_gap.max, (float)r.gap.max / 2, 1e-6f);
    /* what events say along the way does not stand for the last one */
    const struct turn cut = {COUNTED("a", "1") COUNTED("b", "3") LAST DONE, false, KEEP};
    ck_assert_uint_eq(one(&cut, 60, NIB_OK).errors[NIB_LOAD_BROKEN], 1);
}
END_TEST

START_TEST(an_answer_is_measured)
{
    struct nib_load_result r = one(&(struct turn){GOOD, false, KEEP}, 60, NIB_OK);
    ck_assert_uint_eq(r.finished, 1);
    ck_assert_uint_eq(r.tokens_in, 5);
    ck_assert_uint_eq(r.tokens_cached, 2);
    ck_assert_uint_eq(r.tokens_out, 3);
    ck_assert(r.first.count == 1 && r.first.p50 > 0 && r.first.p99 == r.first.p50);
    ck_assert(r.gap.count == 2 && r.token_gap.count == 2 && r.token_gap.p50 == r.gap.p50 && r.token.count == 1 &&
              r.whole.p50 >= r.first.p50 && r.seconds >= r.whole.p50);
    ck_assert_str_eq(r.why.text, "");
    ck_assert_ptr_nonnull(strstr(server.request, "POST /v1/completions HTTP/1.1\r\n"));
    ck_assert_ptr_nonnull(
        strstr(server.request, "\"max_tokens\":3,\"ignore_eos\":true,\"temperature\":0.5,\"seed\":9,"));
    unsigned a, b, c, d, e;
    ck_assert_int_eq(sscanf(strstr(server.request, "\"prompt\":["), "\"prompt\":[%u,%u,%u,%u,%u]", &a, &b, &c, &d, &e),
                     5);
    ck_assert(a < 100 && b < 100 && c < 100 && d < 100 && e < 100);
}
END_TEST

START_TEST(each_way_to_go_wrong_is_told_apart)
{
    static const struct {
        struct turn turn;
        enum nib_load_error error;
        const char *why;
    } cases[] = {
        {{"HTTP/1.1 429 x\r\nContent-Length: 37\r\n\r\n{\"error\":{\"message\":\"queue is full\"}}", true, KEEP},
         NIB_LOAD_REFUSED,
         "queue is full (status 429)"},
        {{"HTTP/1.1 503 x\r\nContent-Length: 2\r\n\r\nno", true, KEEP}, NIB_LOAD_REFUSED, "status 503"},
        {{EVENT("a") "data: {\"error\":{\"message\":\"engine is gone\"}}\n\n", false, KEEP},
         NIB_LOAD_FAILED,
         "engine is gone"},
        {{EVENT("a") "data: nonsense\n\n" LAST USAGE("3") DONE, false, KEEP}, NIB_LOAD_FAILED, "no JSON"},
        {{EVENT("a") LAST USAGE("3"), false, KEEP}, NIB_LOAD_BROKEN, "without its last events"},
        {{EVENT("a") LAST DONE, false, KEEP}, NIB_LOAD_BROKEN, "without its last events"},
        {{CHUNKED "5\r\ndata", true, CLOSE}, NIB_LOAD_BROKEN, "ended before"},
        {{NULL, true, CLOSE}, NIB_LOAD_BROKEN, "ended before"},
        {{"hello\r\n", true, KEEP}, NIB_LOAD_BROKEN, "status line"},
        {{EVENT("a") LAST USAGE("2") DONE, false, KEEP}, NIB_LOAD_SHORT, "asked for 3 tokens"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nib_load_result r = one(&cases[i].turn, 60, NIB_OK);
        ck_assert_msg(r.errors[cases[i].error] == 1 && r.finished == 0, "case %zu: %s", i, r.why.text);
        ck_assert_msg(strstr(r.why.text, cases[i].why) != NULL, "case %zu: %s", i, r.why.text);
        ck_assert_uint_eq(r.first.count + r.whole.count + r.token.count, 0);
    }
}
END_TEST

START_TEST(silence_is_given_up)
{
    struct nib_load_result r = one(&(struct turn){NULL, true, STAY_SILENT}, 0.05, NIB_E_STATE);
    ck_assert_uint_eq(r.errors[NIB_LOAD_LATE], 1);
}
END_TEST

START_TEST(a_stop_ends_the_load)
{
    static const volatile sig_atomic_t stop = 1;
    static const struct turn turn = {NULL, true, STAY_SILENT};
    struct nib_load_result r;
    struct nib_msg msg;
    open_server(&turn, 1);
    struct nib_load load = usual(3);
    ck_assert_int_eq(nib_load_run(&load, &stop, &r, &msg), NIB_E_STATE);
    close_server();
    check_ledger(&r);
    ck_assert(r.sent == 1 && r.errors[NIB_LOAD_LATE] == 1);
}
END_TEST

START_TEST(a_connection_closed_between_requests_is_opened_again)
{
    static const struct turn turns[] = {
        {GOOD, false, CLOSE}, {GOOD, false, KEEP}, {GOOD, false, CLOSE}, {GOOD, false, KEEP}};
    struct nib_load_result r;
    struct nib_msg msg;
    open_server(turns, 4);
    struct nib_load load = usual(4);
    ck_assert_int_eq(nib_load_run(&load, NULL, &r, &msg), NIB_OK);
    close_server();
    check_ledger(&r);
    ck_assert_msg(r.finished == 4, "%s", r.why.text);
}
END_TEST

START_TEST(a_daemon_that_goes_away_ends_the_load)
{
    static const struct turn turns[] = {{GOOD, false, KEEP}, {CHUNKED "5\r\ndata", true, STOP_LISTENING}};
    struct nib_load_result r;
    struct nib_msg msg;
    open_server(turns, 2);
    struct nib_load load = usual(1000);
    ck_assert_int_eq(nib_load_run(&load, NULL, &r, &msg), NIB_E_IO);
    close_server();
    check_ledger(&r);
    ck_assert(r.sent == 2 && r.finished == 1 && r.errors[NIB_LOAD_BROKEN] == 1);
    ck_assert_msg(strstr(msg.text, "no nibbled answers on") != NULL, "%s", msg.text);
    load.socket = "/nowhere/at/all";
    ck_assert_int_eq(nib_load_run(&load, NULL, &r, &msg), NIB_E_IO);
    ck_assert_uint_eq(r.sent, 0);
}
END_TEST

START_TEST(arrivals_do_not_wait_for_answers)
{
    enum { COUNT = 50 };
    static struct turn turns[COUNT];
    struct nib_load_result r, again;
    struct nib_msg msg;
    for (size_t i = 0; i < COUNT; i++)
        turns[i] = (struct turn){GOOD, false, CLOSE};
    static char requests[3][sizeof server.request];
    for (int pass = 0; pass < 3; pass++) {
        open_server(turns, COUNT);
        struct nib_load load = usual(COUNT);
        load.clients = 0;
        load.rate_s = 2000;
        load.seed += pass == 2;
        ck_assert_int_eq(nib_load_run(&load, NULL, pass ? &again : &r, &msg), NIB_OK);
        close_server();
        memcpy(requests[pass], server.request, sizeof server.request);
    }
    check_ledger(&r);
    ck_assert_str_eq(requests[0], requests[1]); /* the same seed, the same requests */
    ck_assert_str_ne(requests[0], requests[2]);
    ck_assert_msg(r.finished == COUNT && again.finished == COUNT, "%s", r.why.text);
    ck_assert(r.waited == 0 && r.whole.max >= r.first.p50);
}
END_TEST

NIB_SUITE(load, a_response_may_be_cut_anywhere, a_response_that_is_none_is_refused, percentiles_are_ranks,
          an_answer_is_measured, a_gap_is_divided_by_its_tokens, each_way_to_go_wrong_is_told_apart,
          silence_is_given_up, a_stop_ends_the_load, a_connection_closed_between_requests_is_opened_again,
          a_daemon_that_goes_away_ends_the_load, arrivals_do_not_wait_for_answers)
