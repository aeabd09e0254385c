/* Stop strings against an oracle: the text up to the first complete stop string, however cut. */
#include "appliance/stop.h"
#include "tests/harness.h"

struct collected {
    char text[4096];
    size_t len;
};

static void collect(void *arg, struct nib_span text)
{
    struct collected *c = arg;
    ck_assert_uint_gt(text.len, 0);
    memcpy(c->text + c->len, text.ptr, text.len);
    c->len += text.len;
}

static struct nib_span span(const char *text)
{
    return nib_span_of(text, strlen(text));
}

/* Where generation that stops at the first complete stop string would cut; len if never. */
static size_t oracle(const char *text, size_t len, const char *const *strings, size_t count, bool *ret_hit)
{
    for (size_t end = 1; end <= len; end++) {
        size_t best = SIZE_MAX;
        for (size_t s = 0; s < count; s++) {
            size_t n = strlen(strings[s]);
            if (n <= end && !memcmp(text + end - n, strings[s], n) && end - n < best)
                best = end - n;
        }
        if (best != SIZE_MAX) {
            *ret_hit = true;
            return best;
        }
    }
    *ret_hit = false;
    return len;
}

START_TEST(test_random)
{
    uint64_t seed = nib_test_seed();
    for (int round = 0; round < 20000; round++) {
        char strings[NIB_MAX_STOP_STRINGS][8];
        const char *names[NIB_MAX_STOP_STRINGS];
        struct nib_stop stop;
        nib_stop_init(&stop);
        size_t count = 1 + nib_test_rand(&seed) % NIB_MAX_STOP_STRINGS;
        for (size_t s = 0; s < count; s++) {
            size_t n = 1 + nib_test_rand(&seed) % 5;
            for (size_t i = 0; i < n; i++)
                strings[s][i] = (char)('a' + nib_test_rand(&seed) % 2);
            strings[s][n] = '\0';
            names[s] = strings[s];
            ck_assert(nib_stop_add(&stop, span(strings[s])));
        }
        char text[40];
        size_t len = nib_test_rand(&seed) % sizeof text;
        for (size_t i = 0; i < len; i++)
            text[i] = (char)('a' + nib_test_rand(&seed) % 3);
        bool hit;
        size_t cut = oracle(text, len, names, count, &hit);
        struct collected c = {.len = 0};
        size_t step = 1; /* one byte at a time is how a byte-level model speaks */
        for (size_t at = 0; at < len; at += step)
            nib_stop_feed(&stop, nib_span_of(text + at, step), collect, &c);
        ck_assert_int_eq(stop.hit, hit);
        nib_stop_flush(&stop, collect, &c);
        ck_assert_uint_eq(c.len, cut);
        ck_assert_int_eq(memcmp(c.text, text, cut), 0);
    }
}
END_TEST

/* In larger pieces a stop string that ends inside a piece is found all the same. */
START_TEST(test_pieces)
{
    uint64_t seed = nib_test_seed();
    static const char text[] = "hello, the END of it\nUser: more";
    for (int round = 0; round < 2000; round++) {
        struct nib_stop stop;
        struct collected c = {.len = 0};
        nib_stop_init(&stop);
        ck_assert(nib_stop_add(&stop, span("\nUser:")));
        ck_assert(nib_stop_add(&stop, span("ENDING")));
        for (size_t at = 0; at < sizeof text - 1;) {
            size_t n = 1 + nib_test_rand(&seed) % 9;
            if (n > sizeof text - 1 - at)
                n = sizeof text - 1 - at;
            nib_stop_feed(&stop, nib_span_of(text + at, n), collect, &c);
            at += n;
        }
        ck_assert(stop.hit);
        nib_stop_flush(&stop, collect, &c);
        ck_assert_uint_eq(c.len, strlen("hello, the END of it"));
    }
}
END_TEST

START_TEST(test_nothing_is_held_needlessly)
{
    struct nib_stop stop;
    struct collected c = {.len = 0};
    nib_stop_init(&stop);
    ck_assert(nib_stop_add(&stop, span("xyz")));
    nib_stop_feed(&stop, span("abc"), collect, &c);
    ck_assert_uint_eq(c.len, 3);
    nib_stop_feed(&stop, span("xy"), collect, &c);
    ck_assert_uint_eq(c.len, 3); /* may become xyz */
    nib_stop_feed(&stop, span("x"), collect, &c);
    ck_assert_uint_eq(c.len, 5); /* "xy" cannot any more */
    nib_stop_flush(&stop, collect, &c);
    ck_assert_uint_eq(c.len, 6);
}
END_TEST

START_TEST(test_limits)
{
    static char text[NIB_MAX_STOP_BYTES + 1];
    memset(text, 'a', sizeof text);
    struct nib_stop stop;
    struct collected c = {.len = 0};
    nib_stop_init(&stop);
    ck_assert(!nib_stop_add(&stop, nib_span_of("", 0)));
    ck_assert(!nib_stop_add(&stop, nib_span_of(text, NIB_MAX_STOP_BYTES + 1)));
    ck_assert(nib_stop_add(&stop, nib_span_of(text, NIB_MAX_STOP_BYTES)));
    for (int i = 1; i < NIB_MAX_STOP_STRINGS; i++)
        ck_assert(nib_stop_add(&stop, span("b")));
    ck_assert(!nib_stop_add(&stop, span("b")));
    for (int i = 0; i < NIB_MAX_STOP_BYTES - 1; i++)
        nib_stop_feed(&stop, span("a"), collect, &c);
    ck_assert(!stop.hit && c.len == 0);
    nib_stop_feed(&stop, span("a"), collect, &c);
    ck_assert(stop.hit && c.len == 0);
    nib_stop_feed(&stop, span("more"), collect, &c);
    nib_stop_flush(&stop, collect, &c);
    ck_assert_uint_eq(c.len, 0);
}
END_TEST

NIB_SUITE(stop, test_random, test_pieces, test_nothing_is_held_needlessly, test_limits)
