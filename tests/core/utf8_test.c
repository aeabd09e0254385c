/* tests/core/utf8_test.c: validation and streams against an oracle that works from code point intervals, not from lead
 * byte tables: every string of one to three bytes, every four of the edge bytes, every character cut at every byte. */
#include "core/utf8.h"
#include "tests/harness.h"

#include <stdbool.h>

/* Bytes of a character with this lead byte by its leading ones, 0 for a continuation byte or five ones. */
static size_t oracle_need(uint8_t lead)
{
    size_t ones = 0;
    while (ones < 8 && lead >> (7 - ones) & 1)
        ones++;
    return ones == 0 ? 1 : ones >= 2 && ones <= 4 ? ones : 0;
}

/* p[0..k) starts (or is) a character: filling its missing bytes with zeros and with ones gives an interval of code
 * points, and some allowed code point of that length lies in it. */
static bool oracle_starts(const uint8_t *p, size_t k)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000}, most[] = {0, 0x7f, 0x7ff, 0xffff, 0x10ffff};
    size_t need = oracle_need(p[0]);
    if (need == 0 || k > need)
        return false;
    uint32_t low = need == 1 ? p[0] : p[0] & (0x7fu >> need), high = low;
    for (size_t i = 1; i < need; i++) {
        if (i < k && (p[i] & 0xc0) != 0x80)
            return false;
        low = low << 6 | (i < k ? p[i] & 0x3fu : 0);
        high = high << 6 | (i < k ? p[i] & 0x3fu : 0x3f);
    }
    low = low < least[need] ? least[need] : low;
    high = high > most[need] ? most[need] : high;
    if (low >= 0xd800 && high <= 0xdfff)
        return false;
    return low <= high;
}

/* The whole decoder on a complete input; *ret_valid is the length of the valid start. */
static size_t oracle_decode(const uint8_t *in, size_t n, char *out, size_t *ret_valid)
{
    size_t used = 0, at = 0;
    *ret_valid = SIZE_MAX;
    while (at < n) {
        size_t k = 0;
        while (at + k < n && oracle_starts(in + at, k + 1))
            k++;
        if (k > 0 && k == oracle_need(in[at])) {
            memcpy(out + used, in + at, k);
            used += k;
        } else {
            *ret_valid = *ret_valid == SIZE_MAX ? at : *ret_valid;
            memcpy(out + used, "\xef\xbf\xbd", 3);
            used += 3;
        }
        at += k > 0 ? k : 1;
    }
    *ret_valid = *ret_valid == SIZE_MAX ? n : *ret_valid;
    return used;
}

/* Pushes in[0..n) in pieces of `step` bytes and compares with what the oracle says. */
static bool stream_agrees(const uint8_t *in, size_t n, size_t step, const char *want, size_t want_bytes)
{
    struct nib_utf8_stream stream = {0};
    char out[32];
    size_t used = 0;
    for (size_t at = 0; at < n; at += step) {
        size_t some = n - at < step ? n - at : step, got = nib_utf8_push(&stream, in + at, some, out + used);
        if (got > NIB_UTF8_PUSH_BYTES(some) || stream.held_bytes > NIB_MAX_UTF8_HELD)
            return false;
        used += got;
    }
    used += nib_utf8_flush(&stream, out + used);
    return used == want_bytes && memcmp(out, want, used) == 0 && nib_utf8_flush(&stream, out) == 0;
}

static bool agrees(const uint8_t *in, size_t n)
{
    char want[16];
    size_t valid, want_bytes = oracle_decode(in, n, want, &valid);
    return nib_utf8_valid_bytes(in, n) == valid && stream_agrees(in, n, n, want, want_bytes) &&
           stream_agrees(in, n, 1, want, want_bytes);
}

START_TEST(every_string_of_three_bytes_agrees)
{
    uint64_t wrong = 0;
    for (uint32_t v = 0; v < 1u << 8; v++)
        wrong += !agrees((const uint8_t[]){(uint8_t)v}, 1);
    for (uint32_t v = 0; v < 1u << 16; v++)
        wrong += !agrees((const uint8_t[]){(uint8_t)(v >> 8), (uint8_t)v}, 2);
    for (uint32_t v = 0; v < 1u << 24; v++)
        wrong += !agrees((const uint8_t[]){(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v}, 3);
    ck_assert_uint_eq(wrong, 0);
}
END_TEST

START_TEST(edge_bytes_in_fours_agree)
{
    static const uint8_t edge[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc2, 0xdf,
                                   0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf3, 0xf4, 0xf5, 0xf8, 0xff};
    const size_t n = sizeof edge;
    uint64_t wrong = 0;
    for (size_t i = 0; i < n * n * n * n; i++) {
        const uint8_t in[] = {edge[i / (n * n * n)], edge[i / (n * n) % n], edge[i / n % n], edge[i % n]};
        wrong += !agrees(in, 4);
    }
    ck_assert_uint_eq(wrong, 0);
}
END_TEST

static size_t encode(uint32_t cp, uint8_t out[4])
{
    size_t need = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = need - 1; i > 0; i--, cp >>= 6)
        out[i] = (uint8_t)(0x80 | (cp & 0x3f));
    out[0] = (uint8_t)(need == 1 ? cp : (0xf00u >> need & 0xff) | cp);
    return need;
}

/* Cut anywhere, a character comes out whole with its last byte; its start alone becomes one U+FFFD. */
static bool survives_cuts(const uint8_t *c, size_t len)
{
    char out[16];
    for (size_t cut = 1; cut < len; cut++) {
        struct nib_utf8_stream stream = {0};
        if (nib_utf8_push(&stream, c, cut, out) != 0 || stream.held_bytes != cut)
            return false;
        struct nib_utf8_stream dropped = stream;
        if (nib_utf8_flush(&dropped, out) != 3 || memcmp(out, "\xef\xbf\xbd", 3) != 0)
            return false;
        if (nib_utf8_push(&stream, c + cut, len - cut, out) != len || memcmp(out, c, len) != 0 || stream.held_bytes)
            return false;
    }
    return true;
}

START_TEST(every_character_survives_every_cut)
{
    uint64_t wrong = 0;
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        uint8_t c[4];
        size_t len = encode(cp, c), got;
        if (cp >= 0xd800 && cp <= 0xdfff)
            wrong += nib_utf8_valid_bytes(c, len) != 0;
        else
            wrong += nib_utf8_valid_bytes(c, len) != len || nib_utf8_decode(c, &got) != cp || got != len ||
                     nib_utf8_len(c[0]) != len || !survives_cuts(c, len);
    }
    ck_assert_uint_eq(wrong, 0);
}
END_TEST

START_TEST(the_first_bad_byte_is_found_at_every_place)
{
    uint8_t *text = malloc(100); /* its end is the block's end, so that a read past it is caught */
    for (size_t bytes = 1; bytes <= 100; bytes++) {
        uint8_t *p = text + 100 - bytes;
        memset(p, 'a', bytes);
        ck_assert_uint_eq(nib_utf8_valid_bytes(p, bytes), bytes);
        for (size_t bad = 0; bad < bytes; bad++) {
            p[bad] = 0x80;
            ck_assert_uint_eq(nib_utf8_valid_bytes(p, bytes), bad);
            p[bad] = 'a';
        }
        p[bytes - 1] = 0xf0;
        ck_assert_uint_eq(nib_utf8_valid_bytes(p, bytes), bytes - 1);
    }
    free(text);
}
END_TEST

NIB_SUITE(utf8, every_string_of_three_bytes_agrees, edge_bytes_in_fours_agree, every_character_survives_every_cut,
          the_first_bad_byte_is_found_at_every_place)
