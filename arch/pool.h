/* arch/pool.h: the CPU engine's worker threads: made once at open, the same number until close.
 *
 * The thread that calls nib_pool_run is worker 0. All workers run one function together and meet at
 * barriers inside it; between two barriers they share out numbered items by nib_pool_take. A
 * waiting worker spins briefly and then sleeps, so an idle pool costs no CPU. No clock, no
 * allocation after open. */
#ifndef NIB_ARCH_POOL_H
#define NIB_ARCH_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "core/limits.h"

struct nib_pool;
typedef void nib_pool_fn(void *arg, uint32_t worker);

struct nib_pool_thread {
    struct nib_pool *pool;
    uint32_t worker;
    pthread_t handle;
};

/* Private but for `threads`. The counters lie on lines of their own: they are what all workers
 * touch. */
struct nib_pool {
    uint32_t threads; /* workers, the caller included */
    uint32_t started;
    bool quit;
    nib_pool_fn *fn;
    void *arg;
    atomic_uint meeting;                            /* workers a barrier waits for: threads, or fewer when open fails */
    _Alignas(64) atomic_uint phase;                 /* barriers passed; what sleepers wait on */
    _Alignas(64) atomic_uint arrived;               /* workers at the barrier */
    _Alignas(64) atomic_uint sleeping;              /* workers asleep at it */
    _Alignas(64) atomic_uint next;                  /* items taken since the last barrier */
    struct nib_pool_thread thread[NIB_MAX_THREADS]; /* [0] is unused */
};

/* Starts threads - 1 threads with all signals blocked. NIB_E_ARG: threads is 0 or above
 * NIB_MAX_THREADS. NIB_E_NOMEM: the system refused one; none is left running. */
enum nib_err nib_pool_open(struct nib_pool *pool, uint32_t threads, struct nib_msg *msg) NIB_CHECKED;

/* Ends and joins the threads. Not inside a run. */
void nib_pool_close(struct nib_pool *pool);

/* Runs fn(arg, worker) on every worker and returns when all have. One caller at a time. */
void nib_pool_run(struct nib_pool *pool, nib_pool_fn *fn, void *arg);

/* Inside a run, called by every worker the same number of times: waits for all. What any wrote
 * before is seen by all after. Restarts nib_pool_take at 0. */
void nib_pool_barrier(struct nib_pool *pool);

/* The next item number since the last barrier: 0, 1, 2, ... each given to one worker only. */
static inline uint32_t nib_pool_take(struct nib_pool *pool)
{
    return atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
}

#endif
