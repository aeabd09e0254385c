/* tests/core/ring_test.c: order, full and empty, counters that wrap, and two threads at once. */
#include "core/ring.h"

#include <pthread.h>
#include <sched.h>

#include "tests/harness.h"

static _Alignas(64) uint8_t block[1 << 16];

static void make(struct nib_ring *ring, uint32_t cells, uint32_t bytes)
{
    struct nib_arena arena;
    nib_arena_init(&arena, block, nib_ring_bytes(cells, bytes));
    ck_assert_int_eq(nib_ring_init(ring, &arena, cells, bytes, NULL), NIB_OK);
}

START_TEST(elements_come_out_in_order_and_whole)
{
    struct nib_ring ring;
    make(&ring, 8, 12);
    uint64_t seed = nib_test_seed();
    uint32_t in = 0, out = 0, full = 0, empty = 0;
    for (int i = 0; i < 20000; i++) {
        if (nib_test_rand(&seed) % 2) {
            uint32_t elem[3] = {in, ~in, in * 7};
            bool room = in - out < 8;
            ck_assert_int_eq(nib_ring_push(&ring, elem), room);
            in += room;
            full += !room;
        } else {
            uint32_t elem[3] = {1, 2, 3};
            bool some = in != out;
            ck_assert_int_eq(nib_ring_pop(&ring, elem), some);
            if (some) {
                ck_assert(elem[0] == out && elem[1] == ~out && elem[2] == out * 7);
                out++;
            } else {
                ck_assert(elem[0] == 1 && elem[1] == 2 && elem[2] == 3);
                empty++;
            }
        }
        ck_assert_uint_eq(nib_ring_used(&ring), in - out);
    }
    ck_assert(full > 100 && empty > 100);
}
END_TEST

START_TEST(counters_may_wrap)
{
    struct nib_ring ring;
    make(&ring, 4, 4);
    atomic_store(&ring.pushed, UINT32_MAX - 1);
    atomic_store(&ring.popped, UINT32_MAX - 1);
    for (uint32_t i = 0; i < 4; i++)
        ck_assert(nib_ring_push(&ring, &i));
    uint32_t value = 9;
    ck_assert(!nib_ring_push(&ring, &value));
    ck_assert_uint_eq(nib_ring_used(&ring), 4);
    for (uint32_t i = 0; i < 4; i++) {
        ck_assert(nib_ring_pop(&ring, &value));
        ck_assert_uint_eq(value, i);
    }
    ck_assert(!nib_ring_pop(&ring, &value));
}
END_TEST

START_TEST(sizes_out_of_range_are_refused)
{
    static const struct {
        uint32_t cells, bytes;
    } bad[] = {{0, 4}, {3, 4}, {4, 0}, {2 * NIB_MAX_RING_CELLS, 4}, {4, NIB_MAX_RING_ELEM_BYTES + 1}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nib_ring ring;
        struct nib_arena arena;
        struct nib_msg msg = {""};
        nib_arena_init(&arena, block, sizeof block);
        ck_assert_int_eq(nib_ring_init(&ring, &arena, bad[i].cells, bad[i].bytes, &msg), NIB_E_ARG);
        ck_assert(msg.text[0] != '\0' && arena.used == 0);
        ck_assert_uint_eq(nib_ring_bytes(bad[i].cells, bad[i].bytes), 0);
    }
    struct nib_ring ring;
    struct nib_arena arena;
    nib_arena_init(&arena, block, 64);
    ck_assert_int_eq(nib_ring_init(&ring, &arena, 64, 4, NULL), NIB_E_NOMEM);
}
END_TEST

enum { STREAM = 40000 };

struct message {
    uint32_t serial;
    uint32_t body[7];
};

static void *produce(void *arg)
{
    struct nib_ring *ring = arg;
    for (uint32_t i = 0; i < STREAM; i++) {
        struct message m = {.serial = i};
        for (uint32_t k = 0; k < 7; k++)
            m.body[k] = i * (k + 3);
        while (!nib_ring_push(ring, &m))
            sched_yield();
    }
    return NULL;
}

START_TEST(two_threads_lose_and_tear_nothing)
{
    struct nib_ring ring;
    make(&ring, 16, sizeof(struct message));
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, produce, &ring), 0);
    for (uint32_t i = 0; i < STREAM; i++) {
        struct message m;
        while (!nib_ring_pop(&ring, &m))
            sched_yield();
        ck_assert_uint_le(nib_ring_used(&ring), 16);
        ck_assert_uint_eq(m.serial, i);
        for (uint32_t k = 0; k < 7; k++)
            ck_assert_uint_eq(m.body[k], i * (k + 3));
    }
    ck_assert_int_eq(pthread_join(thread, NULL), 0);
    ck_assert_uint_eq(nib_ring_used(&ring), 0);
}
END_TEST

NIB_SUITE(ring, elements_come_out_in_order_and_whole, counters_may_wrap, sizes_out_of_range_are_refused,
          two_threads_lose_and_tear_nothing)
