/* core/tokenizer_split.c: owns the hand-written form of o200k's pre-tokenisation pattern, whose
 * alternatives are tried in this order, each with the backtracking of a regular expression:
 *
 *     1  [^\r\n\p{L}\p{N}]? [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]* [\p{Ll}\p{Lm}\p{Lo}\p{M}]+
 * (?i:'s|'t|'re|'ve|'m|'ll|'d)? 2  [^\r\n\p{L}\p{N}]? [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+
 * [\p{Ll}\p{Lm}\p{Lo}\p{M}]* (?i:'s|'t|'re|'ve|'m|'ll|'d)? 3  \p{N}{1,3} 4
 * ?[^\s\p{L}\p{N}]+[\r\n/]* 5  \s*[\r\n]+ 6  \s+(?!\S) 7  \s+
 *
 * Backtracking is worked out beforehand, so each scan only goes forward: a run is scanned at most
 * three times before a piece ends behind it. Limits: none beyond the text. Any thread. Cannot fail.
 */
#include "core/tokenizer_split.h"

#include <stdbool.h>

#include "core/unicode.h"
#include "core/utf8.h"

#define BIT(c) (1u << NIB_UC_##c)
#define HEADS  (BIT(UPPER) | BIT(LETTER) | BIT(MARK)) /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
#define TAILS  (BIT(LOWER) | BIT(LETTER) | BIT(MARK)) /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
#define LEAD   (BIT(OTHER) | BIT(MARK) | BIT(SPACE))  /* [^\r\n\p{L}\p{N}] */
#define PUNCT  (BIT(OTHER) | BIT(MARK))               /* [^\s\p{L}\p{N}] */
#define BLANK  (BIT(SPACE) | BIT(NEWLINE))            /* \s */

struct text {
    const uint8_t *at; /* [bytes] */
    size_t bytes;
};

/* The class of the character at `at` as one bit, and where it ends; 0 at the end of the text. */
static unsigned class_at(const struct text *t, size_t at, size_t *ret_end)
{
    if (at >= t->bytes)
        return 0;
    size_t len;
    uint32_t cp = nib_utf8_decode(t->at + at, &len);
    *ret_end = at + len;
    return 1u << nib_unicode_class_of(cp);
}

/* The end of the longest run of characters of these classes. */
static size_t run_end(const struct text *t, size_t at, unsigned classes)
{
    size_t end = at;
    while (class_at(t, at, &end) & classes)
        at = end;
    return at;
}

/* The end of (?i:'s|'t|'re|'ve|'m|'ll|'d)? at `at`. U+017F, the long s, folds to s; no other letter
 * here has a fold outside ASCII. */
static size_t contraction_end(const struct text *t, size_t at)
{
    const uint8_t *p = t->at + at;
    size_t left = t->bytes - at;
    if (left < 2 || p[0] != '\'')
        return at;
    int a = p[1] | 0x20, b = left > 2 ? p[2] | 0x20 : 0;
    if (p[1] < 0x80 && (a == 's' || a == 't' || a == 'm' || a == 'd'))
        return at + 2;
    if (left > 2 && p[1] == 0xc5 && p[2] == 0xbf)
        return at + 3;
    if (p[1] < 0x80 && b < 0x80 && ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')))
        return at + 3;
    return at;
}

/* Alternatives 1 and 2 behind their optional first character; `at` when neither matches.
 *
 * HEADS* takes all it can, to `heads`. If a TAILS character follows, it is a Ll, and TAILS+ takes
 * the rest. If not, alternative 1 gives characters back until one is a TAILS too: it matches just
 * that one, since those after it are Lu or Lt. With none to give, alternative 2 takes all the
 * heads. */
static size_t word_end(const struct text *t, size_t at)
{
    size_t heads = at, shared_end = at, end = at;
    unsigned c;
    while ((c = class_at(t, heads, &end)) & HEADS) {
        heads = end;
        if (c & TAILS)
            shared_end = end;
    }
    if (c & TAILS)
        return contraction_end(t, run_end(t, end, TAILS));
    if (shared_end > at)
        return contraction_end(t, shared_end);
    return heads > at ? contraction_end(t, heads) : at;
}

/* Alternatives 1 and 2 at `at`, whose character has class c and ends at `next`; `at` when neither
 * matches.
 *
 * The optional first character is tried first with and then without. A mark may be that character
 * or start the letters; both ways give the same end, but when only Lu and Lt follow it: then the
 * mark alone, which word_end gives. */
static size_t letters_end(const struct text *t, size_t at, unsigned c, size_t next)
{
    if (!(c & LEAD) || c & BIT(MARK))
        return word_end(t, at);
    size_t end = word_end(t, next);
    return end > next ? end : at;
}

/* Alternatives 5 to 7: `at` is on a space or newline. The piece ends behind the last newline of the
 * run; with none, it leaves the last space to the word that follows. */
static size_t blank_end(const struct text *t, size_t at)
{
    size_t last = at, newline_end = at, end = at, run = at;
    unsigned c;
    while ((c = class_at(t, run, &end)) & BLANK) {
        last = run;
        run = end;
        if (c & BIT(NEWLINE))
            newline_end = end;
    }
    if (newline_end > at)
        return newline_end;
    return run == t->bytes || last == at ? run : last;
}

size_t nib_split_next(const uint8_t *text, size_t bytes, size_t at)
{
    const struct text t = {text, bytes};
    size_t next = at;
    unsigned c = class_at(&t, at, &next);
    size_t end = letters_end(&t, at, c, next);
    if (end > at)
        return end;
    if (c & BIT(NUMBER)) {
        for (int digits = 1; digits < 3 && class_at(&t, next, &end) & BIT(NUMBER); digits++)
            next = end;
        return next;
    }
    size_t punct = text[at] == ' ' ? next : at;
    end = run_end(&t, punct, PUNCT);
    if (end > punct) {
        while (end < bytes && (text[end] == '\r' || text[end] == '\n' || text[end] == '/'))
            end++;
        return end;
    }
    return blank_end(&t, at);
}
