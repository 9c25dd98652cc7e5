/* Time, randomness and fork detection: what the outside world decides for us. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

static int64_t
clock_ms(clockid_t id)
{
    struct timespec ts;

    (void)clock_gettime(id, &ts); /* cannot fail for these clocks */
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static int64_t
system_wall_ms(void *user)
{
    (void)user;
    return clock_ms(CLOCK_REALTIME);
}

static int64_t
system_boot_ms(void *user)
{
    (void)user;
    return clock_ms(CLOCK_BOOTTIME);
}

const ie_clock ie__system_clock = {system_wall_ms, system_boot_ms, NULL};

const ie_clock *
ie__clock_or_system(const ie_clock *clock)
{
    return clock != NULL ? clock : &ie__system_clock;
}

int64_t
ie__wall_ms(const ie_clock *clock)
{
    return clock->wall_ms(clock->user);
}

int64_t
ie__boot_ms(const ie_clock *clock)
{
    return clock->boot_ms(clock->user);
}

int64_t
ie__mono_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static char           boot_id[64];
static pthread_once_t boot_id_once = PTHREAD_ONCE_INIT;

static void
boot_id_read(void)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (file == NULL)
        return;
    if (fgets(boot_id, sizeof boot_id, file) == NULL)
        boot_id[0] = '\0';
    boot_id[strcspn(boot_id, "\n")] = '\0';
    (void)fclose(file);
}

const char *
ie__boot_id(void)
{
    (void)pthread_once(&boot_id_once, boot_id_read);
    return boot_id;
}

/* ---- fork detection: a handler costs nothing per call, getpid() costs a system call -------- */

static atomic_uint    fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void
fork_child(void)
{
    atomic_fetch_add(&fork_generation, 1);
}

static void
fork_watch(void)
{
    (void)pthread_atfork(NULL, NULL, fork_child);
}

unsigned
ie__fork_generation(void)
{
    (void)pthread_once(&fork_once, fork_watch);
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

/* ---- randomness ---------------------------------------------------------------------------- */

static pthread_mutex_t  seed_lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic uint64_t seed_state; /* 0: the kernel's randomness */
static atomic_uint      random_generation;

static uint64_t
splitmix64(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);

    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void
ie__random_seed(uint64_t seed)
{
    atomic_store(&seed_state, seed);
    atomic_fetch_add(&random_generation, 1);
}

unsigned
ie__random_generation(void)
{
    return atomic_load_explicit(&random_generation, memory_order_relaxed);
}

static void
random_from_seed(unsigned char *out, size_t bytes)
{
    (void)pthread_mutex_lock(&seed_lock);
    while (bytes > 0) {
        uint64_t     state = atomic_load(&seed_state);
        uint64_t     word = splitmix64(&state);
        const size_t n = bytes < sizeof word ? bytes : sizeof word;

        atomic_store(&seed_state, state != 0 ? state : 1);
        memcpy(out, &word, n);
        out += n;
        bytes -= n;
    }
    (void)pthread_mutex_unlock(&seed_lock);
}

static size_t
random_from_device(unsigned char *out, size_t bytes)
{
    const int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    size_t    done = 0;

    if (fd < 0)
        return 0;
    while (done < bytes) {
        const ssize_t got = read(fd, out + done, bytes - done);

        if (got > 0)
            done += (size_t)got;
        else if (got == 0 || errno != EINTR)
            break;
    }
    (void)close(fd);
    return done;
}

/*
 * A system without getrandom(2) (a seccomp filter, say) and without /dev/urandom. Ids stay unique,
 * which is what the library needs them for; only "nobody can guess" is lost, and a library does
 * not end its host's process for that.
 */
static void
random_from_clocks(unsigned char *out, size_t bytes)
{
    static _Atomic uint64_t calls;
    uint64_t                state = atomic_fetch_add(&calls, 1) + 1;

    state = splitmix64(&state) ^ (uint64_t)ie__mono_ns();
    state = splitmix64(&state) ^ (uint64_t)ie__wall_ms(&ie__system_clock);
    state = splitmix64(&state) ^ (uint64_t)getpid();
    state = splitmix64(&state) ^ (uint64_t)(uintptr_t)&state ^ (uint64_t)(uintptr_t)&calls;
    while (bytes > 0) {
        const uint64_t word = splitmix64(&state);
        const size_t   n = bytes < sizeof word ? bytes : sizeof word;

        memcpy(out, &word, n);
        out += n;
        bytes -= n;
    }
}

void
ie__random(void *out, size_t bytes)
{
    unsigned char *at = out;

    if (atomic_load_explicit(&seed_state, memory_order_relaxed) != 0) {
        random_from_seed(at, bytes);
        return;
    }
    while (bytes > 0) {
        const ssize_t got = getrandom(at, bytes, 0);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        at += got;
        bytes -= (size_t)got;
    }
    if (bytes > 0) {
        const size_t got = random_from_device(at, bytes);

        if (got < bytes)
            random_from_clocks(at + got, bytes - got);
    }
}

uint64_t
ie__random_below(uint64_t below)
{
    static _Thread_local uint64_t state;
    static _Thread_local unsigned generation;

    if (below == 0)
        return 0;
    if (atomic_load_explicit(&seed_state, memory_order_relaxed) != 0) {
        uint64_t word;

        random_from_seed((unsigned char *)&word, sizeof word);
        return word % below;
    }
    if (state == 0 || generation != ie__fork_generation()) { /* a child must not repeat us */
        ie__random(&state, sizeof state);
        generation = ie__fork_generation();
    }
    return splitmix64(&state) % below; /* the bias of % is far below what back-off needs */
}
