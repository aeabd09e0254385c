/* tests/fake/stream.c: owns the queues of work and the thread that runs them.
 * Limits: FAKE_QUEUE pieces a stream. In a stream order is kept; between streams the worker takes turns. An error ends all
 * work: what is queued is dropped, as on a GPU whose context is lost. */
#include <stdio.h>
#include <string.h>

#include "tests/fake/fake.h"

void fake_settle_event(struct CUevent_st *event)
{
    if (event->destroyed && event->queued == 0)
        fake_delete(event);
}

void fake_settle_exec(struct CUgraphExec_st *exec)
{
    if (exec->destroyed && exec->queued == 0) {
        fake_delete(exec->node);
        fake_delete(exec);
    }
}

/* One more piece of work that names its event or graph, or one less. */
static void count(const struct fake_work *w, int by)
{
    if (w->kind == FAKE_EVENT) {
        w->event->queued += (uint32_t)by;
        fake_settle_event(w->event);
    } else if (w->kind == FAKE_GRAPH) {
        w->exec->queued += (uint32_t)by;
        fake_settle_exec(w->exec);
    }
}

int fake_enqueue(struct CUstream_st *s, const struct fake_work *work)
{
    int result = 0;
    pthread_mutex_lock(&fake.lock);
    if (s->capturing) {
        if (work->kind == FAKE_EVENT || work->kind == FAKE_GRAPH)
            result = FAKE_CAPTURE_UNSUPPORTED;
        else if (s->graph->count == FAKE_NODES)
            result = NIB_CU_OUT_OF_MEMORY;
        else
            s->graph->node[s->graph->count++] = *work;
    } else if (s->tail - s->head == FAKE_QUEUE) {
        result = NIB_CU_OUT_OF_MEMORY; /* a GPU would wait for room */
        fake_violation("%d pieces of work wait in one stream", FAKE_QUEUE);
    } else {
        s->work[s->tail++ % FAKE_QUEUE] = *work;
        count(work, 1);
        pthread_cond_signal(&fake.wake);
    }
    pthread_mutex_unlock(&fake.lock);
    return result;
}

/* The addresses were right when the call was made; they must still be. */
static int copy(const struct fake_work *w)
{
    uint8_t *device = fake_map(w->device, w->bytes);
    if (!device) {
        fake_violation("a copy's memory was freed before the copy ran");
        return NIB_CU_ILLEGAL_ADDRESS;
    }
    if (w->kind == FAKE_TO_HOST)
        memcpy(w->host, device, w->bytes);
    else
        memcpy(device, w->staged ? w->staged : w->host, w->bytes);
    if (w->flip) {
        uint64_t bit = (w->flip * 0x9e3779b97f4a7c15u >> 20) % (w->bytes * 8);
        device[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    fake_delete(w->staged);
    return 0;
}

static int run_one(const struct fake_work *w)
{
    switch (w->kind) {
    case FAKE_TO_DEVICE:
    case FAKE_TO_HOST:
        return copy(w);
    case FAKE_WITHIN: {
        uint8_t *to = fake_map(w->device, w->bytes);
        const uint8_t *from = fake_map(w->from, w->bytes);
        if (!to || !from)
            return NIB_CU_ILLEGAL_ADDRESS;
        memmove(to, from, w->bytes);
        return 0;
    }
    case FAKE_FILL: {
        uint8_t *device = fake_map(w->device, w->bytes);
        if (!device)
            return NIB_CU_ILLEGAL_ADDRESS;
        memset(device, w->value, w->bytes);
        return 0;
    }
    case FAKE_KERNEL:
        return fake_kernel(w);
    default:
        return 0;
    }
}

static int run(const struct fake_work *w)
{
    int result = 0;
    if (w->kind == FAKE_GRAPH) {
        for (uint32_t i = 0; i < w->exec->count && !result; i++)
            result = run_one(&w->exec->node[i]);
    } else if (w->kind == FAKE_EVENT) {
        clock_gettime(CLOCK_MONOTONIC, &w->event->at);
        __atomic_store_n(&w->event->done, true, __ATOMIC_SEQ_CST);
    } else {
        result = run_one(w);
    }
    return result;
}

/* The next stream with work, after the last one served. */
static struct CUstream_st *next_stream(struct CUstream_st *last)
{
    struct CUstream_st *first = last && last->next ? last->next : fake.streams;
    for (struct CUstream_st *s = first; s; s = s->next)
        if (s->head != s->tail)
            return s;
    for (struct CUstream_st *s = fake.streams; s && s != first; s = s->next)
        if (s->head != s->tail)
            return s;
    return NULL;
}

static void *work(void *arg)
{
    (void)arg;
    struct CUstream_st *last = NULL;
    pthread_mutex_lock(&fake.lock);
    for (;;) {
        struct CUstream_st *s = fake.sticky ? NULL : next_stream(last);
        if (!s) {
            pthread_cond_wait(&fake.wake, &fake.lock);
            last = NULL; /* streams may have gone meanwhile */
            continue;
        }
        struct fake_work *w = &s->work[s->head % FAKE_QUEUE];
        s->running = true;
        pthread_mutex_unlock(&fake.lock);
        int result = run(w);
        if (result)
            fake_poison(result);
        pthread_mutex_lock(&fake.lock);
        s->running = false;
        count(w, -1);
        s->head++;
        last = s;
    }
    return NULL;
}

bool fake_start_worker(void)
{
    if (fake.worker_started)
        return true;
    fake.worker_started = pthread_create(&fake.worker, NULL, work, NULL) == 0;
    return fake.worker_started;
}
