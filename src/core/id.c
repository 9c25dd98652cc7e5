/*
 * UUIDv7 (RFC 9562, 5.7 and 6.2).
 *
 * 48 bits of milliseconds, then a counter of 16 bits (rand_a and the first four bits of rand_b),
 * then 58 random bits. Milliseconds and counter together are one 64-bit number that only grows:
 * a clock that goes back or a millisecond with more than 65,536 ids carries on from the last
 * number, so ids ascend without a lock, and a child of fork() can never find a lock held.
 */
#include "id.h"

#include <stdatomic.h>
#include <string.h>

#include "core.h"

/* Random words fetched at once: a system call for each id would be most of its cost. */
#define POOL_WORDS 128

typedef struct id_pool {
    uint64_t words[POOL_WORDS];
    unsigned left;
    unsigned fork_generation;
    unsigned random_generation;
} id_pool;

static _Atomic uint64_t last_stamp;

/* 64 random bits that this process, thread and fork has never handed out. */
static uint64_t
pool_take(void)
{
    static _Thread_local id_pool pool;
    const unsigned               fork_now = ie__fork_generation();
    const unsigned               random_now = ie__random_generation();

    if (pool.left == 0 || pool.fork_generation != fork_now ||
        pool.random_generation != random_now) {
        ie__random(pool.words, sizeof pool.words);
        pool.left = POOL_WORDS;
        pool.fork_generation = fork_now;
        pool.random_generation = random_now;
    }
    return pool.words[--pool.left];
}

static uint64_t
next_stamp(uint64_t now)
{
    uint64_t last = atomic_load_explicit(&last_stamp, memory_order_relaxed);
    uint64_t stamp;

    do {
        stamp = now > last ? now : last + 1;
    } while (!atomic_compare_exchange_weak_explicit(&last_stamp, &last, stamp, memory_order_relaxed,
                                                    memory_order_relaxed));
    return stamp;
}

/* Eight digits at a time: each half byte gets a byte, then its letter. */
static void
put_hex8(char out[8], uint32_t bits)
{
    const uint64_t ones = UINT64_C(0x0101010101010101);
    uint64_t       word = bits;

    word = (word << 16 | word) & UINT64_C(0x0000FFFF0000FFFF);
    word = (word << 8 | word) & UINT64_C(0x00FF00FF00FF00FF);
    word = (word << 4 | word) & (15 * ones);
    word += '0' * ones + ((word + 6 * ones) >> 4 & ones) * ('a' - '0' - 10);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    memcpy(out, &word, sizeof word);
}

void
ie__id_new_at(char out[IE_ID_SIZE], int64_t wall_ms)
{
    const uint64_t random = pool_take();
    /* The counter of a fresh millisecond starts in its lower half: random where it can be, with
     * 32,768 ids to go before it runs into the next millisecond. */
    const uint64_t ms = wall_ms > 0 ? (uint64_t)wall_ms : 0;
    const uint64_t start = ms << 16 | (random >> 58) << 9;
    const uint64_t stamp = next_stamp(start);
    const uint64_t tail = random & ((UINT64_C(1) << 58) - 1);

    char digits[32];

    put_hex8(digits, (uint32_t)(stamp >> 32));
    put_hex8(digits + 8, (uint32_t)((stamp & 0xFFFF0000) | 0x7000 | (stamp >> 4 & 0x0FFF)));
    put_hex8(digits + 16, (uint32_t)(0x80000000 | (stamp & 0xF) << 26 | tail >> 32));
    put_hex8(digits + 24, (uint32_t)tail);
    memcpy(out, digits, 8);
    out[8] = out[13] = out[18] = out[23] = '-';
    memcpy(out + 9, digits + 8, 4);
    memcpy(out + 14, digits + 12, 4);
    memcpy(out + 19, digits + 16, 4);
    memcpy(out + 24, digits + 20, 12);
    out[36] = '\0';
}

void
ie_id_new(char out[IE_ID_SIZE])
{
    ie__id_new_at(out, ie__wall_ms(&ie__system_clock));
}
