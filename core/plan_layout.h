/* core/plan_layout.h: the two halves of core/plan.c that compute: where each region lies, and how fast it can be.
 * Private to core/plan*.c. Any thread; cannot fail. */
#ifndef NIB_CORE_PLAN_LAYOUT_H
#define NIB_CORE_PLAN_LAYOUT_H

#include "core/plan.h"

/* Fills plan->regions, arena_bytes, ring_pages, weight_bytes and kv_bytes from plan->dims and the spill decisions. */
void nib_plan_layout(const struct nib_plan_request *request, struct nib_plan *plan);

/* Fills the roofline figures from the laid-out plan: bytes read per token over the memory's rate (spilled experts over
 * the link's), and arithmetic of the active weights over the dense rate for prefill. */
void nib_plan_predict(const struct nib_plan_request *request, struct nib_plan *plan);

#endif
