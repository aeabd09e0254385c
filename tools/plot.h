/* tools/plot.h: a plot of times against load, as an SVG file of plain lines and text. One thread. */
#ifndef NIB_TOOLS_PLOT_H
#define NIB_TOOLS_PLOT_H

#include <stdint.h>

#include "core/err.h"

#define NIB_PLOT_MAX_POINTS 32
#define NIB_PLOT_PANELS     2 /* one above the other, with the same x axis */
#define NIB_PLOT_LINES      3 /* of a panel */

struct nib_plot_panel {
    const char *title;
    double ms[NIB_PLOT_LINES][NIB_PLOT_MAX_POINTS]; /* not above 0: there is none */
};

struct nib_plot {
    const char *title, *x_title; /* any text */
    const char *lines[NIB_PLOT_LINES];
    uint32_t count;                /* points: 1..NIB_PLOT_MAX_POINTS */
    double x[NIB_PLOT_MAX_POINTS]; /* ascending, above 0 */
    struct nib_plot_panel panels[NIB_PLOT_PANELS];
};

/* Writes the file anew; y is logarithmic, and x too when it spans more than a factor of 8. NIB_E_IO: it cannot be
 * written. */
enum nib_err nib_plot_write(const struct nib_plot *plot, const char *path, struct nib_msg *msg) NIB_CHECKED;

#endif
