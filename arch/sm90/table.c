/* arch/sm90/table.c: owns the row's image and its table. Constant data. */
#define NIB_SM  90
#define NIB_ROW sm90
#include "arch/cuda/table.h"
