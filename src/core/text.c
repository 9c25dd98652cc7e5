/* UTF-8, hashing, and timestamps as text. */
#include "text.h"

#include <pthread.h>

#include "core.h"

/* ---- UTF-8 -------------------------------------------------------------------------------- */

size_t
ie__utf8_valid_prefix(const char *text, size_t bytes)
{
    const unsigned char *at = (const unsigned char *)text;
    size_t               i = 0;

    while (i < bytes) {
        if (bytes - i >= 8 && (ie__load8(at + i) & IE__HIGH_BITS) == 0) {
            i += 8;
        } else if (at[i] < 0x80) {
            i++;
        } else {
            uint32_t     point;
            const size_t size = ie__utf8_sequence(at + i, bytes - i, &point);

            if (size == 0)
                return i;
            i += size;
        }
    }
    return i;
}

bool
ie__utf8_is_valid(const char *text, size_t bytes)
{
    return ie__utf8_valid_prefix(text, bytes) == bytes;
}

const char *
ie__text_fault(const char *text, size_t bytes)
{
    static const char    CONTROL[] = "contains a control character";
    const unsigned char *at = (const unsigned char *)text;
    size_t               i = 0;

    while (i < bytes) {
        if (bytes - i >= 8) {
            const uint64_t word = ie__load8(at + i);

            if (((word & IE__HIGH_BITS) | ie__has_below(word, 0x20) |
                 ie__has_zero(word ^ IE__BYTES(0x7F))) == 0) {
                i += 8;
                continue;
            }
        }
        if (at[i] < 0x80) {
            if (at[i] < 0x20 || at[i] == 0x7F)
                return CONTROL;
            i++;
        } else {
            uint32_t     point;
            const size_t size = ie__utf8_sequence(at + i, bytes - i, &point);

            if (size == 0)
                return "is not valid UTF-8";
            if (point < 0xA0)
                return CONTROL;
            if (ie__is_noncharacter(point))
                return "contains a Unicode non-character";
            i += size;
        }
    }
    return NULL;
}

/* ---- SipHash-1-3 -------------------------------------------------------------------------- */

static uint64_t
load_le(const unsigned char *at, size_t bytes)
{
    uint64_t word = 0;

    for (size_t i = 0; i < bytes; i++)
        word |= (uint64_t)at[i] << (8 * i);
    return word;
}

static uint64_t
load_le8(const unsigned char *at)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return ie__load8(at);
#else
    return load_le(at, 8);
#endif
}

static uint64_t
rotate(uint64_t word, unsigned bits)
{
    return (word << bits) | (word >> (64 - bits));
}

static inline void
sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static uint64_t
siphash13(const void *bytes, size_t size, const uint64_t key[2])
{
    const unsigned char *at = bytes;
    uint64_t v[4] = {key[0] ^ UINT64_C(0x736f6d6570736575), key[1] ^ UINT64_C(0x646f72616e646f6d),
                     key[0] ^ UINT64_C(0x6c7967656e657261), key[1] ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)size << 56;

    for (; size >= 8; at += 8, size -= 8) {
        const uint64_t word = load_le8(at);

        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    if (size > 0) /* at may be NULL when there is nothing to read */
        last |= load_le(at, size);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xFF;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static uint64_t       hash_key[2];
static pthread_once_t hash_key_once = PTHREAD_ONCE_INIT;

static void
hash_key_make(void)
{
    ie__random(hash_key, sizeof hash_key);
}

uint64_t
ie__hash(const void *bytes, size_t size)
{
    (void)pthread_once(&hash_key_once, hash_key_make);
    return siphash13(bytes, size, hash_key);
}

uint64_t
ie__digest(const void *bytes, size_t size, uint64_t seed)
{
    /* Stored values depend on this constant ("ie digest"); it never changes. */
    const uint64_t key[2] = {UINT64_C(0x6965206469676573) ^ seed, UINT64_C(0x74000000697a6531)};

    return siphash13(bytes, size, key);
}

/* ---- RFC 3339 ----------------------------------------------------------------------------- */

#define DAY_MS         INT64_C(86400000)
#define DAYS_0000_1970 719528
#define YEAR_0000_MS   INT64_C(-62167219200000) /* 0000-01-01T00:00:00.000Z */
#define YEAR_9999_MS   INT64_C(253402300799999) /* 9999-12-31T23:59:59.999Z */

static int
days_in_month(int year, int month)
{
    static const unsigned char DAYS[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool                 is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

    return month == 2 && is_leap ? 29 : DAYS[month - 1];
}

/* Days from 1970-01-01 to the first of January; year 0..10000, proleptic Gregorian. */
static int64_t
days_before_year(int64_t year)
{
    const int64_t past = year - 1;
    const int64_t leap = year > 0 ? past / 4 - past / 100 + past / 400 + 1 : 0; /* 0000 is one */

    return year * 365 + leap - DAYS_0000_1970;
}

static void
put_digits(char *out, int value, int digits)
{
    while (digits-- > 0) {
        out[digits] = (char)('0' + value % 10);
        value /= 10;
    }
}

void
ie__time_format(char out[IE_TIME_TEXT_SIZE], int64_t wall_ms)
{
    int64_t days;
    int     of_day;
    int     year;
    int     month = 1;

    /* Four digits is all the format has: what lies beyond is shown as its end. */
    if (wall_ms < YEAR_0000_MS)
        wall_ms = YEAR_0000_MS;
    if (wall_ms > YEAR_9999_MS)
        wall_ms = YEAR_9999_MS;
    days = (wall_ms - YEAR_0000_MS) / DAY_MS; /* since 0000-01-01 */
    of_day = (int)((wall_ms - YEAR_0000_MS) % DAY_MS);
    year = (int)(days * 400 / 146097); /* 400 years are 146,097 days: at most one off */
    days -= DAYS_0000_1970;
    while (days_before_year(year) > days)
        year--;
    while (days_before_year(year + 1) <= days)
        year++;
    days -= days_before_year(year);
    while (days >= days_in_month(year, month))
        days -= days_in_month(year, month++);

    memcpy(out, "0000-00-00T00:00:00.000Z", 25);
    put_digits(out, year, 4);
    put_digits(out + 5, month, 2);
    put_digits(out + 8, (int)days + 1, 2);
    put_digits(out + 11, of_day / 3600000, 2);
    put_digits(out + 14, of_day / 60000 % 60, 2);
    put_digits(out + 17, of_day / 1000 % 60, 2);
    put_digits(out + 20, of_day % 1000, 3);
}

/* Exactly so many digits, or -1. */
static int
take_digits(const char *at, int digits)
{
    int value = 0;

    for (int i = 0; i < digits; i++) {
        if (at[i] < '0' || at[i] > '9')
            return -1;
        value = value * 10 + (at[i] - '0');
    }
    return value;
}

/* "Z", "z", "+hh:mm" or "-hh:mm", and nothing after it. */
static bool
take_offset(const char *at, size_t bytes, int *minutes)
{
    int hour;
    int minute;

    *minutes = 0;
    if (bytes == 1)
        return *at == 'Z' || *at == 'z';
    if (bytes != 6 || (at[0] != '+' && at[0] != '-') || at[3] != ':')
        return false;
    hour = take_digits(at + 1, 2);
    minute = take_digits(at + 4, 2);
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59)
        return false;
    *minutes = (at[0] == '-' ? -1 : 1) * (hour * 60 + minute);
    return true;
}

ie_status
ie__time_parse(int64_t *out, const char *text, size_t bytes)
{
    int     year, month, day, hour, minute, second, offset;
    int     fraction_ms = 0;
    size_t  i = 19;
    int64_t ms;

    if (bytes < 20 || text[4] != '-' || text[7] != '-' || (text[10] != 'T' && text[10] != 't') ||
        text[13] != ':' || text[16] != ':')
        return IE_EINVAL;
    year = take_digits(text, 4);
    month = take_digits(text + 5, 2);
    day = take_digits(text + 8, 2);
    hour = take_digits(text + 11, 2);
    minute = take_digits(text + 14, 2);
    second = take_digits(text + 17, 2);
    if (year < 0 || month < 1 || month > 12 || day < 1 || day > days_in_month(year, month) ||
        hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60)
        return IE_EINVAL;
    if (text[i] == '.') {
        int scale = 100;

        for (i++; i < bytes && text[i] >= '0' && text[i] <= '9'; i++, scale /= 10)
            fraction_ms += (text[i] - '0') * scale; /* digits past the third count nothing */
        if (i == 20)
            return IE_EINVAL;
    }
    if (!take_offset(text + i, bytes - i, &offset))
        return IE_EINVAL;
    ms = days_before_year(year) + day - 1;
    for (int m = 1; m < month; m++)
        ms += days_in_month(year, m);
    ms = ms * DAY_MS + (hour * INT64_C(60) + minute - offset) * 60000;
    if (second == 60) { /* a leap second is the last of a UTC day that ends a month */
        char next[IE_TIME_TEXT_SIZE];

        ie__time_format(next, ms + 60000);
        if (memcmp(next + 8, "01T00:00:", 9) != 0)
            return IE_EINVAL;
    }
    ms += second * INT64_C(1000) + fraction_ms;
    if (ms < YEAR_0000_MS || ms > YEAR_9999_MS)
        return IE_EINVAL; /* what could not be written back is not read either */
    *out = ms;
    return IE_OK;
}
