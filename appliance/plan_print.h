/* appliance/plan_print.h: the memory plan as people and programs read it. `nibble plan` and `nibbled` print with it. */
#ifndef NIB_APPLIANCE_PLAN_PRINT_H
#define NIB_APPLIANCE_PLAN_PRINT_H

#include <jansson.h>
#include <stdio.h>

#include "core/plan.h"
#include "core/profile.h"

/* Regions, arenas beside their budgets, context, slots, spill and roof, as lines of text. */
void nib_plan_print(FILE *out, const struct nib_plan *plan, const struct nib_profile *profile);

/* The same and every region's place, as one object, the caller's; NULL when there is no memory. */
json_t *nib_plan_json(const struct nib_plan *plan, const struct nib_profile *profile);

#endif
