/* gpu/wait.c: owns the one way of waiting for the device: poll, sleep a little, give up at a deadline; and says when not to sleep.
 * Any thread with the context current. Fails with NIB_E_DEVICE. */
#include <time.h>

#include "gpu/state.h"

enum { SPINS = 64 };
#define NAP_NS  20000L
#define NEAR_US 60 /* of a thousand naps one took 50 us */

uint64_t nib_gpu_now_us(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

void nib_gpu_pause(uint32_t tries)
{
    if (tries < SPINS)
        return;
    const struct timespec nap = {.tv_nsec = NAP_NS};
    (void)nanosleep(&nap, NULL);
}

bool nib_gpu_near(uint64_t now_us, uint64_t due_us)
{
    return now_us + NEAR_US > due_us && now_us < due_us + NEAR_US;
}

enum nib_err nib_gpu_wait(const struct nib_cuda *cuda, struct CUstream_st *stream, uint64_t us_max, struct nib_msg *msg)
{
    const uint64_t begin = nib_gpu_now_us();
    for (uint32_t tries = 0;; tries++) {
        int result = cuda->cuStreamQuery(stream);
        if (result != NIB_CU_NOT_READY)
            return nib_cuda_result(cuda, "cuStreamQuery", result, msg);
        if (nib_gpu_now_us() - begin > us_max)
            return nib_fail(msg, NIB_E_DEVICE, "the GPU did not end its work in %llu ms",
                            (unsigned long long)(us_max / 1000));
        nib_gpu_pause(tries);
    }
}

enum nib_err nib_gpu_idle(struct nib_gpu_engine *e, uint64_t us_max, struct nib_msg *msg)
{
    return nib_gpu_wait(e->cuda, e->stream, us_max, msg);
}
