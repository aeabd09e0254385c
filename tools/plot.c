/* tools/plot.c: owns the file that it writes. Limits: those of plot.h. One thread. Fails when the file cannot be written. */
#include "tools/plot.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 720, LEFT = 70, RIGHT = 150, TOP = 50, PANEL = 240, BETWEEN = 40, BOTTOM = 50 };
enum { PLOT_WIDTH = WIDTH - LEFT - RIGHT, HEIGHT = TOP + NIB_PLOT_PANELS * (PANEL + BETWEEN) + BOTTOM - BETWEEN };

static const char *const colors[NIB_PLOT_LINES] = {"#1b6ca8", "#d98e04", "#b3261e"};

/* The range of a panel's values, as powers of ten. */
struct range {
    double low, high;
};

static void put_escaped(FILE *out, const char *text)
{
    for (; *text; text++) {
        const char *escaped = *text == '&' ? "&amp;" : *text == '<' ? "&lt;" : *text == '>' ? "&gt;" : NULL;
        if (escaped)
            (void)fputs(escaped, out);
        else if ((unsigned char)*text >= 0x20)
            (void)fputc(*text, out);
    }
}

static void put_text(FILE *out, double x, double y, const char *attributes, const char *text)
{
    (void)fprintf(out, "<text x=\"%.1f\" y=\"%.1f\"%s>", x, y, attributes);
    put_escaped(out, text);
    (void)fputs("</text>\n", out);
}

static void put_line(FILE *out, double x1, double y1, double x2, double y2, const char *color)
{
    (void)fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1, y1, x2, y2,
                  color);
}

static double place_x(const struct nib_plot *p, uint32_t i)
{
    const double low = p->x[0], high = p->x[p->count - 1];
    if (p->count == 1)
        return LEFT + PLOT_WIDTH / 2.0;
    if (high > 8 * low)
        return LEFT + 15 + (PLOT_WIDTH - 30) * log(p->x[i] / low) / log(high / low);
    return LEFT + PLOT_WIDTH * p->x[i] / (high * 1.03);
}

static double place_y(const struct range *r, double top, double ms)
{
    return top + PANEL * (1 - (log10(ms) - r->low) / (r->high - r->low));
}

static struct range range_of(const struct nib_plot *p, const struct nib_plot_panel *panel)
{
    struct range r = {HUGE_VAL, -HUGE_VAL};
    for (uint32_t line = 0; line < NIB_PLOT_LINES; line++)
        for (uint32_t i = 0; i < p->count; i++) {
            const double ms = panel->ms[line][i];
            if (!(ms > 0))
                continue;
            r.low = fmin(r.low, log10(ms));
            r.high = fmax(r.high, log10(ms));
        }
    if (r.low > r.high)
        return (struct range){0, 1}; /* nothing to show */
    r.low = floor(r.low * 3) / 3 - 0.05;
    r.high = ceil(r.high * 3) / 3 + 0.05;
    return r;
}

static void put_grid(FILE *out, const struct nib_plot *p, const struct range *r, double top)
{
    static const double steps[] = {1, 2, 5};
    char label[32];
    double shown = -HUGE_VAL;
    for (int power = (int)floor(r->low); power <= (int)ceil(r->high); power++)
        for (size_t s = 0; s < 3; s++) {
            const double ms = steps[s] * pow(10, power);
            if (log10(ms) < r->low || log10(ms) > r->high)
                continue;
            put_line(out, LEFT, place_y(r, top, ms), LEFT + PLOT_WIDTH, place_y(r, top, ms), "#dddddd");
            (void)snprintf(label, sizeof label, "%.6g", ms);
            put_text(out, LEFT - 6, place_y(r, top, ms) + 4, " text-anchor=\"end\"", label);
        }
    for (uint32_t i = 0; i < p->count; i++) {
        put_line(out, place_x(p, i), top, place_x(p, i), top + PANEL, "#eeeeee");
        if (place_x(p, i) < shown + 34)
            continue; /* no room for its number */
        shown = place_x(p, i);
        (void)snprintf(label, sizeof label, "%.4g", p->x[i]);
        put_text(out, shown, top + PANEL + 15, " text-anchor=\"middle\"", label);
    }
    (void)fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#444444\"/>\n",
                  LEFT, top, PLOT_WIDTH, PANEL);
}

static void put_lines(FILE *out, const struct nib_plot *p, const struct nib_plot_panel *panel, double top)
{
    const struct range r = range_of(p, panel);
    put_text(out, LEFT, top - 8, " font-weight=\"bold\"", panel->title);
    put_grid(out, p, &r, top);
    for (uint32_t line = 0; line < NIB_PLOT_LINES; line++) {
        const double *ms = panel->ms[line];
        (void)fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colors[line]);
        for (uint32_t i = 0; i < p->count; i++)
            if (ms[i] > 0)
                (void)fprintf(out, "%.1f,%.1f ", place_x(p, i), place_y(&r, top, ms[i]));
        (void)fputs("\"/>\n", out);
        for (uint32_t i = 0; i < p->count; i++)
            if (ms[i] > 0)
                (void)fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", place_x(p, i),
                              place_y(&r, top, ms[i]), colors[line]);
        const double y = top + 15 + 20.0 * line;
        put_line(out, LEFT + PLOT_WIDTH + 12, y - 4, LEFT + PLOT_WIDTH + 32, y - 4, colors[line]);
        put_text(out, LEFT + PLOT_WIDTH + 38, y, "", p->lines[line]);
    }
}

enum nib_err nib_plot_write(const struct nib_plot *p, const char *path, struct nib_msg *msg)
{
    FILE *out = fopen(path, "w");
    if (!out)
        return nib_fail(msg, NIB_E_IO, "cannot write %s: %s", path, strerror(errno));
    (void)fprintf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(out, LEFT, 20, " font-size=\"14\"", p->title);
    for (uint32_t i = 0; i < NIB_PLOT_PANELS; i++)
        put_lines(out, p, &p->panels[i], TOP + i * (PANEL + (double)BETWEEN));
    put_text(out, LEFT + PLOT_WIDTH / 2.0, HEIGHT - 12, " text-anchor=\"middle\"", p->x_title);
    (void)fputs("</svg>\n", out);
    const bool bad = ferror(out) != 0;
    if (fclose(out) != 0 || bad)
        return nib_fail(msg, NIB_E_IO, "cannot write %s: %s", path, strerror(errno));
    return NIB_OK;
}
