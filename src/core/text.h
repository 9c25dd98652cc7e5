/* Text as CloudEvents attributes may hold it, and the SWAR words that the scanners share. */
#ifndef IE_TEXT_H
#define IE_TEXT_H

#include <ie/base.h>

#include <string.h>

/* Eight bytes at once: the top bit of each byte of the answer that has the property is set. */
#define IE__BYTES(byte) (UINT64_C(0x0101010101010101) * (byte))
#define IE__HIGH_BITS   IE__BYTES(0x80)

static inline uint64_t
ie__load8(const void *bytes)
{
    uint64_t word;

    memcpy(&word, bytes, sizeof word);
    return word;
}

/* Non-zero when some byte is zero; exact as a yes-or-no question, not per byte. */
static inline uint64_t
ie__has_zero(uint64_t word)
{
    return (word - IE__BYTES(1)) & ~word & IE__HIGH_BITS;
}

/* Non-zero when some byte is below limit (1..128); exact as a yes-or-no question. */
static inline uint64_t
ie__has_below(uint64_t word, uint64_t limit)
{
    return (word - IE__BYTES(limit)) & ~word & IE__HIGH_BITS;
}

/*
 * Length of the well-formed sequence that starts with a byte >= 0x80, 2..4; 0 when it is
 * malformed or cut off. The code point goes to *point.
 */
static inline size_t
ie__utf8_sequence(const unsigned char *at, size_t bytes, uint32_t *point)
{
    const unsigned char first = at[0];

    if (first < 0xC2 || first > 0xF4 || bytes < 2 || (at[1] & 0xC0) != 0x80)
        return 0;
    if (first < 0xE0) {
        *point = ((first & 0x1Fu) << 6) | (at[1] & 0x3Fu);
        return 2;
    }
    if (bytes < 3 || (at[2] & 0xC0) != 0x80)
        return 0;
    if (first < 0xF0) {
        *point = ((first & 0x0Fu) << 12) | ((at[1] & 0x3Fu) << 6) | (at[2] & 0x3Fu);
        return *point >= 0x800 && (*point & 0xF800) != 0xD800 ? 3 : 0; /* overlong, surrogate */
    }
    if (bytes < 4 || (at[3] & 0xC0) != 0x80)
        return 0;
    *point = ((first & 0x07u) << 18) | ((at[1] & 0x3Fu) << 12) | ((at[2] & 0x3Fu) << 6) |
             (at[3] & 0x3Fu);
    return *point >= 0x10000 && *point <= 0x10FFFF ? 4 : 0;
}

/* U+FDD0..FDEF and the last two of each plane: never characters, refused by CloudEvents. */
static inline bool
ie__is_noncharacter(uint32_t point)
{
    return (point & 0xFFFE) == 0xFFFE || (point >= 0xFDD0 && point <= 0xFDEF);
}

/* White space beyond ASCII (the Unicode property; U+0085 counts as a control character). */
static inline bool
ie__is_wide_space(uint32_t point)
{
    return point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) ||
           point == 0x2028 || point == 0x2029 || point == 0x202F || point == 0x205F ||
           point == 0x3000;
}

/* Why the bytes cannot be a CloudEvents String, as a constant; NULL when they can. */
const char *ie__text_fault(const char *text, size_t bytes);

#endif
