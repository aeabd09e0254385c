/* appliance/answer_buf.c: the two forms of a job's buffer: a ring of bytes for a stream, records by
 * section for a whole answer. Limits: the buffer's bytes. Front thread. A full buffer sets
 * `overflow`. */
#include <string.h>

#include "appliance/answer.h"

struct record {
    uint32_t section;
    uint32_t len;
};

void nib_answer_send(struct nib_answer *a, const char *text, size_t len)
{
    if (len > a->buf_bytes - nib_answer_waiting(a)) {
        a->overflow = true;
        return;
    }
    size_t at = a->head % a->buf_bytes;
    size_t first = len < a->buf_bytes - at ? len : a->buf_bytes - at;
    memcpy(a->buf + at, text, first);
    memcpy(a->buf, text + first, len - first);
    a->head += len;
}

static struct record record_at(const struct nib_answer *a, size_t at)
{
    struct record r;
    memcpy(&r, a->buf + at, sizeof r);
    return r;
}

bool nib_answer_fits(struct nib_answer *a, size_t len)
{
    size_t reserve = a->closing ? 0 : NIB_ANSWER_RESERVE;
    size_t records = (NIB_SEC_COUNT + 1) * sizeof(struct record) + NIB_SEC_COUNT;
    if (a->overflow || len + records + reserve > a->buf_bytes - a->log_used)
        a->overflow = true;
    return !a->overflow;
}

void nib_answer_keep(struct nib_answer *a, enum nib_section section, const char *text, size_t len)
{
    if (len == 0 || !nib_answer_fits(a, len))
        return;
    struct record r = {.section = (uint32_t)section};
    bool extend = a->last_record != SIZE_MAX;
    if (extend) {
        r = record_at(a, a->last_record);
        extend = r.section == (uint32_t)section;
    }
    if (!extend) {
        r = (struct record){.section = (uint32_t)section};
        a->last_record = a->log_used;
        a->log_used += sizeof r;
    }
    memcpy(a->buf + a->log_used, text, len);
    a->log_used += len;
    r.len += (uint32_t)len;
    memcpy(a->buf + a->last_record, &r, sizeof r);
    a->section_bytes[section] += len;
}

static size_t read_ring(struct nib_answer *a, char *to, size_t max)
{
    uint64_t waiting = nib_answer_waiting(a);
    size_t len = waiting < max ? (size_t)waiting : max;
    size_t at = a->tail % a->buf_bytes;
    size_t first = len < a->buf_bytes - at ? len : a->buf_bytes - at;
    memcpy(to, a->buf + at, first);
    memcpy(to + first, a->buf, len - first);
    a->tail += len;
    return len;
}

/* The next bytes of the section that the reader stands in. */
static size_t read_section(struct nib_answer *a, uint32_t section, char *to, size_t max)
{
    for (;;) {
        struct record r = record_at(a, a->read_record);
        if (r.section == section && a->read_in_record < r.len) {
            size_t left = r.len - a->read_in_record;
            size_t len = left < max ? left : max;
            memcpy(to, a->buf + a->read_record + sizeof r + a->read_in_record, len);
            a->read_in_record += len;
            return len;
        }
        a->read_record += sizeof r + r.len;
        a->read_in_record = 0;
    }
}

size_t nib_answer_read(struct nib_answer *a, char *to, size_t max)
{
    if (a->stream)
        return read_ring(a, to, max);
    size_t done = 0;
    while (done < max && a->read_piece < a->pieces_count) {
        const struct nib_piece *p = &a->pieces[a->read_piece];
        uint64_t left = p->len - a->read_in_piece;
        if (left == 0) {
            a->read_piece++;
            a->read_in_piece = a->read_record = a->read_in_record = 0;
            continue;
        }
        size_t want = left < max - done ? (size_t)left : max - done;
        if (p->is_section)
            want = read_section(a, p->at, to + done, want);
        else
            memcpy(to + done, a->frame + p->at + a->read_in_piece, want);
        a->read_in_piece += want;
        done += want;
    }
    return done;
}
