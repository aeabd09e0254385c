/* appliance/front.h: the thread that owns sockets, HTTP, JSON and text.
 *
 * libmicrohttpd's epoll descriptor, the stepper's eventfd, a signalfd and the clients' hang-ups are
 * waited for in one loop; no thread but this one touches libmicrohttpd or jansson. Before READY it
 * serves /health, /metrics and refusals only. Its memory comes from the plan, fixed at boot;
 * libmicrohttpd's own memory is bounded by limits.connections. */
#ifndef NIB_APPLIANCE_FRONT_H
#define NIB_APPLIANCE_FRONT_H

#include <microhttpd.h>

#include "appliance/answer.h"
#include "appliance/config.h"
#include "appliance/metrics.h"
#include "appliance/peer.h"
#include "appliance/prompt.h"
#include "appliance/stepper.h"

struct nib_struck;

/* Storage that boot carves for the front. */
struct nib_front_mem {
    uint32_t jobs_count, bodies_count, ctx_tokens, slots;
    const struct nib_tokenizer *tokenizer;
    const char *model;
    const struct nib_struck *struck; /* [struck_count] rows whose kernels are wrong (appliance/machine.h) */
    uint32_t struck_count;
    uint32_t vocab;
    uint32_t text_ids; /* the ids below this are all ordinary text */
    uint32_t stop_count;
    uint32_t stop[NIB_MAX_STOP_TOKENS]; /* ids that end an answer */
    struct nib_job_in *inputs;          /* [jobs_count], shared with the stepper */
    uint32_t *prompts;                  /* [jobs_count][ctx_tokens] */
    struct nib_front_job *jobs;         /* [jobs_count] */
    char *answers;                      /* [jobs_count][answer_bytes] */
    char *small_bodies;                 /* [limits.connections][NIB_SMALL_BODY_BYTES] */
    char *bodies;                       /* [bodies_count][body_bytes] */
    void *json_pool;                    /* [json_bytes] */
    void *encode_scratch;
    size_t encode_scratch_bytes;
    char *render_scratch;
    size_t render_scratch_bytes;
};

/* The front's side of a job. */
struct nib_front_job {
    bool used, ended, cancelled, started, waiting;
    int32_t conn; /* -1: the client is gone or answered */
    uint32_t uid;
    enum nib_end end;
    uint64_t retry_ms;
    uint64_t received_us, first_us, last_us;
    struct nib_answer answer;
};

/* Most bodies are small and need no place in the pool. */
#define NIB_SMALL_BODY_BYTES 16384
enum { NIB_BODY_NONE = -1, NIB_BODY_SMALL = -2 };

enum nib_phase_http {
    NIB_HTTP_IDLE, /* no request line yet */
    NIB_HTTP_HEAD, /* request line seen */
    NIB_HTTP_BODY,
    NIB_HTTP_WAIT, /* a job works on it, nothing to send */
    NIB_HTTP_SEND
};

struct nib_route;

struct nib_conn {
    bool used, suspended, dispatched, counted;
    bool half_closed; /* the client sends no more */
    bool gone;        /* and reads no more */
    uint32_t generation;
    uint32_t requests; /* begun on it */
    int fd;
    struct MHD_Connection *mhd;
    struct nib_peer peer;
    enum nib_phase_http phase;
    uint64_t since_ms; /* the phase began, or output last moved */
    const struct nib_route *route;
    int32_t body; /* of the pool, or NIB_BODY_* */
    size_t body_used;
    int32_t job;               /* -1: none */
    struct nib_answer *answer; /* of the job */
    int status;                /* sent */
    uint64_t received_us;
    struct nib_refusal refusal; /* found while the body still comes in */
};

struct nib_front {
    const struct nib_config *config;
    struct nib_stepper *stepper;
    struct nib_front_mem mem;   /* valid once attached */
    bool attached;              /* READY was seen */
    bool draining, failed, cut; /* cut: running requests were cancelled to end the drain */
    bool passed;                /* the listening socket is systemd's: it outlives this process */
    int listen_fd, epoll_fd, signal_fd;
    struct MHD_Daemon *mhd;
    struct nib_conn conns[NIB_MAX_CONNS];
    bool body_used[64];
    uint32_t jobs_active;
    struct nib_peer_counts peers;
    struct nib_metrics metrics;
    struct nib_prompt_env env;
    struct nib_params params; /* of the request being decoded */
    uint64_t next_id, started_s;
    uint64_t drain_until_ms, watchdog_ms, watchdog_last_ms, watchdog_alive;
    uint64_t status_last_ms, status_done;
    uint64_t deadlines_ms;                      /* the connections' deadlines were looked at */
    uint64_t moved_alive, moved_ms;             /* the stepper's last sign of life, and when it was seen */
    uint64_t still_ms, still_alive, still_done; /* since when it has not moved, and where it is */
    bool stuck;                                 /* it moves no more: leave it alone, end the process without it */
    struct nib_msg stuck_why;
    int exit_code;
};

/* Serves until SIGTERM has drained, or the stepper failed; returns the process's exit code. */
int nib_front_run(struct nib_front *front);

/* ---- between the front's files ---- */

/* conn.c: libmicrohttpd's callbacks and deadlines */
enum nib_err nib_conn_start(struct nib_front *front, struct nib_msg *msg) NIB_CHECKED;
void nib_conn_resume(struct nib_front *front, struct nib_conn *conn);
void nib_conn_suspend(struct nib_conn *conn);
void nib_conn_kill(struct nib_conn *conn);
void nib_conn_hangup(struct nib_front *front, uint64_t mark, bool both_ways);
void nib_conn_deadlines(struct nib_front *front, uint64_t now_ms);
char *nib_conn_body(struct nib_front *front, const struct nib_conn *conn, size_t *ret_bytes);
/* Moves a small body to one of the pool's. false: none is free. */
bool nib_conn_grow_body(struct nib_front *front, struct nib_conn *conn, struct nib_refusal *ret_refusal) NIB_CHECKED;
void nib_conn_release_body(struct nib_front *front, struct nib_conn *conn);

/* respond.c: whole responses */
enum MHD_Result nib_respond_error(struct nib_front *front, struct nib_conn *conn, const struct nib_refusal *refusal);
enum MHD_Result nib_respond_text(struct nib_front *front, struct nib_conn *conn, int status, const char *type,
                                 const struct nib_out *text, bool copy);
enum MHD_Result nib_respond_answer(struct nib_front *front, struct nib_conn *conn);

/* routes.c: what is where */
struct nib_route {
    const char *path;
    const char *method;
    bool generates; /* counts in the ledger */
    bool early;     /* served before READY too */
    enum MHD_Result (*serve)(struct nib_front *front, struct nib_conn *conn);
};
const struct nib_route *nib_route_find(const char *path);

/* generate.c: requests that become jobs */
enum MHD_Result nib_generate_chat(struct nib_front *front, struct nib_conn *conn);
enum MHD_Result nib_generate_completion(struct nib_front *front, struct nib_conn *conn);
enum MHD_Result nib_generate_resumed(struct nib_front *front, struct nib_conn *conn);
void nib_generate_event(struct nib_front *front, const struct nib_job_event *event);
void nib_generate_detach(struct nib_front *front, struct nib_conn *conn);

#endif
