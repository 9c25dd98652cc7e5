/*
 * What the modules share and the public API does not show: memory through one door, time,
 * randomness, growing buffers, small checks. Names start with ie__ and are not exported.
 */
#ifndef IE_CORE_H
#define IE_CORE_H

#include <ie/base.h>
#include <ie/event.h>

#include <stdarg.h>

/* ---- memory: one door, so that a test can make the n-th allocation fail ------------------ */

void *ie__alloc(size_t bytes);                            /* NULL on failure; bytes may be 0 */
void *ie__calloc(size_t count, size_t bytes);             /* zeroed; checks the product */
void *ie__realloc(void *old, size_t bytes);               /* old stays valid on failure */
void *ie__realloc_array(void *old, size_t count, size_t bytes); /* checks the product */
char *ie__strdup(const char *text);                       /* NULL in, NULL out */
void  ie__free(void *memory);

/*
 * For tests: let the n-th allocation from now fail (1 = the next), once or from then on; 0 ends
 * it. ie__alloc_failed() tells how many were failed since. Threads: set while nothing else runs.
 */
void     ie__alloc_fail_at(uint64_t n, bool sticky);
uint64_t ie__alloc_failed(void);

/* ---- time and randomness ------------------------------------------------------------------ */

extern const ie_clock ie__system_clock;
const ie_clock *ie__clock_or_system(const ie_clock *clock);
int64_t         ie__wall_ms(const ie_clock *clock);
int64_t         ie__boot_ms(const ie_clock *clock);
/* Monotonic nanoseconds for measuring; never virtual. */
int64_t ie__mono_ns(void);
/* The kernel's boot id, "" where there is none; in a static buffer. Threads: any. */
const char *ie__boot_id(void);

/* Fill with random bytes that nobody can guess (getrandom(2), else /dev/urandom). Never fails. */
void ie__random(void *out, size_t bytes);
/* Uniform in [0, below); below 0 gives 0. Not for secrets; cheap. Threads: any. */
uint64_t ie__random_below(uint64_t below);
/* Tests: make ie__random() deterministic from a seed; 0 returns to the kernel's. */
void ie__random_seed(uint64_t seed);
/* Grows with each ie__random_seed(), so that what was fetched ahead can be thrown away. */
unsigned ie__random_generation(void);

/* Grows by one in each fork()ed child, so that handles can tell that they were carried over. */
unsigned ie__fork_generation(void);

/* ---- buffers ------------------------------------------------------------------------------ */

ie_status ie__buffer_reserve(ie_buffer *buffer, size_t more); /* IE_ENOMEM: unchanged */
ie_status ie__buffer_add(ie_buffer *buffer, const void *bytes, size_t size);
ie_status ie__buffer_text(ie_buffer *buffer, const char *text);
ie_status ie__buffer_printf(ie_buffer *buffer, const char *fmt, ...) IE_PRINTF(2, 3);
/* Append a JSON string literal with its quotes; the input must be valid UTF-8. */
ie_status ie__buffer_json_string(ie_buffer *buffer, const char *text, size_t bytes);

/* ---- structs with a size in front --------------------------------------------------------- */

/* Read a struct that another build filled in. size_min is its size in its first release.
 * IE_EINVAL: too small. IE_ENOTSUP: a newer caller uses a field that we lack. */
ie_status ie__struct_import(void *dst, size_t dst_size, const void *src, size_t size_min);

/* ---- logging ------------------------------------------------------------------------------ */

void ie__log(const ie_logger *logger, ie_log_level level, const char *module, const char *fmt, ...)
    IE_PRINTF(4, 5);

/* ---- text --------------------------------------------------------------------------------- */

/* Length of the longest valid UTF-8 prefix (no surrogates, no overlong forms, <= U+10FFFF). */
size_t ie__utf8_valid_prefix(const char *text, size_t bytes);
bool   ie__utf8_is_valid(const char *text, size_t bytes);
/* 64-bit hash keyed per process (SipHash-1-3): for tables that strangers fill. */
uint64_t ie__hash(const void *bytes, size_t size);
/* As ie__hash() with a fixed key: the same in every process, for what is stored. */
uint64_t ie__digest(const void *bytes, size_t size, uint64_t seed);

/* RFC 3339 <-> UTC milliseconds. Format writes "2026-11-21T21:30:00.123Z" (25 bytes with NUL). */
#define IE_TIME_TEXT_SIZE 32
void      ie__time_format(char out[IE_TIME_TEXT_SIZE], int64_t wall_ms);
ie_status ie__time_parse(int64_t *out, const char *text, size_t bytes);

#endif
