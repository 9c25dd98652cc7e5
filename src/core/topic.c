/* Topics and patterns: what may be published to, what may be subscribed to, and who gets what. */
#include <ie/event.h>

#include <string.h>

#include "attributes.h"
#include "text.h"

#define CHAR_PLAIN    0
#define CHAR_DOT      1
#define CHAR_WILDCARD 2 /* of ours or of a transport: '*', '>', '#', '+' */
#define CHAR_CONTROL  3
#define CHAR_SPACE    4

static unsigned
char_class(unsigned char c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
        return CHAR_PLAIN;
    switch (c) {
    case '.': return CHAR_DOT;
    case '*':
    case '>':
    case '#':
    case '+': return CHAR_WILDCARD;
    case ' ': return CHAR_SPACE;
    default: return c < 0x20 || c == 0x7F ? CHAR_CONTROL : CHAR_PLAIN;
    }
}

/* Why a sequence beyond ASCII may not stand in a name; NULL and its size when it may. */
static const char *
wide_fault(const unsigned char *at, size_t bytes, size_t *size)
{
    uint32_t point;

    *size = ie__utf8_sequence(at, bytes, &point);
    if (*size == 0)
        return "is not valid UTF-8";
    if (point < 0xA0)
        return "contains a control character";
    if (ie__is_wide_space(point))
        return "contains white space";
    return ie__is_noncharacter(point) ? "contains a Unicode non-character" : NULL;
}

/* Is the byte at name[i] a whole word that this pattern may have? */
static bool
is_wildcard_word(const char *name, size_t bytes, size_t i)
{
    const bool starts = i == 0 || name[i - 1] == '.';
    const bool is_last = i + 1 == bytes;

    if (name[i] == '*')
        return starts && (is_last || name[i + 1] == '.');
    return name[i] == '>' && starts && is_last;
}

static const char *
name_fault(const char *name, size_t bytes, bool is_pattern)
{
    const unsigned char *at = (const unsigned char *)name;
    size_t               word = 0; /* where the present word starts */
    size_t               size;

    if (bytes == 0)
        return "is empty";
    if (bytes > IE_TOPIC_BYTES_MAX)
        return "is longer than 255 bytes";
    if (at[0] == '$')
        return "starts with '$', which transports keep for themselves";
    for (size_t i = 0; i < bytes; i += size) {
        const char *fault;

        size = 1;
        if (at[i] >= 0x80) {
            fault = wide_fault(at + i, bytes - i, &size);
            if (fault != NULL)
                return fault;
            continue;
        }
        switch (char_class(at[i])) {
        case CHAR_PLAIN: break;
        case CHAR_DOT:
            if (word == i)
                return "has an empty word";
            word = i + 1;
            break;
        case CHAR_WILDCARD:
            if (!is_pattern)
                return "contains one of the wildcards * > # +";
            if (!is_wildcard_word(name, bytes, i))
                return "may have '*' only as a whole word and '>' only as the last word";
            break;
        case CHAR_SPACE: return "contains white space";
        default: return "contains a control character";
        }
    }
    return word == bytes ? "has an empty word" : NULL;
}

const char *
ie__fault_topic(const char *text, size_t bytes, ie_status *status)
{
    *status = IE_EINVAL;
    return name_fault(text, bytes, false);
}

static ie_status
name_check(const char *name, const char *what, bool is_pattern, ie_error *err)
{
    const char *fault;

    if (name == NULL)
        return ie_error_set(err, IE_EINVAL, "%s is missing", what);
    fault = name_fault(name, strnlen(name, IE_TOPIC_BYTES_MAX + 1), is_pattern);
    if (fault != NULL)
        return ie_error_set(err, IE_EINVAL, "%s %s", what, fault);
    return IE_OK;
}

ie_status
ie_topic_check(const char *topic, ie_error *err)
{
    return name_check(topic, "topic", false, err);
}

ie_status
ie_pattern_check(const char *pattern, ie_error *err)
{
    return name_check(pattern, "pattern", true, err);
}

bool
ie_pattern_matches(const char *pattern, const char *topic)
{
    /* Both wildcards take whole words and '>' comes last, so one pass decides: no way back. */
    while (*pattern != '\0' && *topic != '\0') {
        if (*pattern == '>')
            return true;
        if (*pattern == '*') {
            pattern++;
            while (*topic != '\0' && *topic != '.')
                topic++;
        } else {
            while (*pattern == *topic && *pattern != '\0' && *pattern != '.') {
                pattern++;
                topic++;
            }
        }
        if (*pattern != *topic)
            return false;
        if (*pattern == '.') {
            pattern++;
            topic++;
        }
    }
    return *pattern == *topic;
}
