/* appliance/stepper.h: the thread that owns engine and scheduler.
 *
 * It boots first (the callback loads the model and fills in the engine), proves the engine with a
 * short fixed prompt, and then serves: commands in from one ring, events out through another.
 * Allocates nothing after the boot callback. Everything it tells the outside is in atomics. */
#ifndef NIB_APPLIANCE_STEPPER_H
#define NIB_APPLIANCE_STEPPER_H

#include <pthread.h>
#include <stdatomic.h>

#include "appliance/job.h"
#include "core/ring.h"
#include "core/sched.h"

enum nib_state { NIB_STATE_LOADING, NIB_STATE_READY, NIB_STATE_DRAINING, NIB_STATE_FAILED };

/* Gauges and counters of the scheduler, for /metrics and the health page: at most a millisecond old, or a step. */
enum nib_gauge {
    NIB_G_SUBMITTED,
    NIB_G_FINISHED,
    NIB_G_REFUSED,
    NIB_G_CANCELLED,
    NIB_G_FAILED,
    NIB_G_QUEUED,
    NIB_G_RUNNING,
    NIB_G_PAGES_USED,
    NIB_G_PAGES,
    NIB_G_STEPS,
    NIB_G_ROWS_PROMPT,
    NIB_G_ROWS_DECODE,
    NIB_G_TOKENS,
    NIB_G_TOKENS_REUSED,
    NIB_G_PAGES_IDLE,
    NIB_G_PAGES_EVICTED,
    NIB_G_TOKENS_DRAFTED,
    NIB_G_TOKENS_ACCEPTED,
    NIB_G_RETRY_MS, /* until a queue place is likely free */
    NIB_G_CANARIES, /* self-tests passed, the one at boot included */
    NIB_G_COUNT
};

#define NIB_CANARY_TOKENS 8u /* answer of the self-test */

struct nib_stepper {
    /* set before start */
    enum nib_err (*boot)(void *arg, struct nib_stepper *stepper, struct nib_msg *msg);
    void *boot_arg;
    uint64_t canary_ms;   /* idle time before the self-test runs again */
    uint64_t idle_ms_max; /* between two idle turns; 0: NIB_IDLE_MS */

    /* filled by boot, before it returns */
    struct nib_engine *engine;
    struct nib_sched *sched;
    struct nib_job_in *jobs; /* [jobs_count] */
    uint32_t jobs_count;
    struct nib_ring commands;             /* struct nib_cmd */
    struct nib_ring events;               /* struct nib_job_event */
    struct nib_handle *handles;           /* [jobs_count] */
    struct nib_sched_event *sched_events; /* [nib_sched_events_max] */
    struct nib_step *step;
    struct nib_step_out *out;
    uint64_t stall_ms_max; /* `alive` rests longer only when a call of the driver does not return; 0: no bound */

    /* shared */
    atomic_int state;    /* enum nib_state; set by the stepper: FAILED before any request's failed end */
    atomic_bool quit;    /* set by the front */
    atomic_ullong alive; /* grows with every finished step, and every idle turn */
    atomic_ullong boot_done, boot_total; /* bytes of the image */
    atomic_ullong gauges[NIB_G_COUNT];
    int wake_stepper;       /* eventfd: commands wait */
    int wake_front;         /* eventfd: events wait, or the state changed */
    struct nib_msg failure; /* valid in NIB_STATE_FAILED */
    enum nib_err failure_err;

    /* the stepper's own */
    pthread_t thread;
    bool lost; /* the engine failed: everything is answered with failure */
    bool golden_set;
    uint32_t in_flight;
    uint64_t begun_us[NIB_MAX_STEPS_AHEAD]; /* [in_flight], the oldest first */
    uint64_t ended_us;                      /* the last step that was collected */
    uint64_t idle_since_ms;
    uint64_t published_ms; /* the gauges were brought up to date in this millisecond */
    uint32_t golden[NIB_CANARY_TOKENS];
};

/* Opens the eventfds and starts the thread. NIB_E_IO: the system refused. */
enum nib_err nib_stepper_start(struct nib_stepper *stepper, struct nib_msg *msg) NIB_CHECKED;

/* Front: pushes a command and wakes the thread. The ring has room for every job's two commands. */
void nib_stepper_command(struct nib_stepper *stepper, enum nib_cmd_type type, uint32_t job);

/* Asks the thread to end and waits for it. False: it did not within NIB_STOP_MS, stuck in a call of the driver, and only the
 * process' end ends it; without stall_ms_max the wait has no bound. */
#define NIB_STOP_MS 4000
bool nib_stepper_stop(struct nib_stepper *stepper) NIB_CHECKED;

uint64_t nib_now_ms(void);
uint64_t nib_now_us(void);

#endif
