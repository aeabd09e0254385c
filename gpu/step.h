/* gpu/step.h: the two calls of core/engine.h for a GPU. The stepper thread, the one that opened the device. */
#ifndef NIB_GPU_STEP_H
#define NIB_GPU_STEP_H

#include "gpu/state.h"

enum nib_err nib_gpu_submit(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg);
enum nib_err nib_gpu_collect(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg);

#endif
