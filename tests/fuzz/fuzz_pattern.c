/* Input: a pattern, a line break, a topic. Checks and matcher against the plainest way to do it. */
#include <ie/event.h>

#include <string.h>

#include "fuzz.h"

/* The word at *at, up to a dot or the end; *at moves past the dot. False at the end. */
static bool
next_word(const char **at, const char **word, size_t *bytes)
{
    if (*at == NULL)
        return false;
    *word = *at;
    *bytes = strcspn(*at, ".");
    *at = (*at)[*bytes] == '.' ? *at + *bytes + 1 : NULL;
    return true;
}

static bool
reference_matches(const char *pattern, const char *topic)
{
    for (;;) {
        const char *a;
        const char *b;
        size_t      a_bytes;
        size_t      b_bytes;
        const bool  has_a = next_word(&pattern, &a, &a_bytes);
        const bool  has_b = next_word(&topic, &b, &b_bytes);

        if (!has_a || !has_b)
            return has_a == has_b;
        if (a_bytes == 1 && *a == '>')
            return true;
        if (!(a_bytes == 1 && *a == '*') && (a_bytes != b_bytes || memcmp(a, b, a_bytes) != 0))
            return false;
    }
}

/* Only what needs no table of Unicode: shape, length, wildcards, ASCII. */
static bool
has_shape(const char *name, bool is_pattern)
{
    const char *at = name;
    const char *word;
    size_t      bytes;

    if (*name == '$' || strlen(name) > IE_TOPIC_BYTES_MAX)
        return false;
    while (next_word(&at, &word, &bytes)) {
        if (bytes == 0)
            return false;
        if (is_pattern && bytes == 1 && (*word == '*' || (*word == '>' && at == NULL)))
            continue;
        for (size_t i = 0; i < bytes; i++)
            if (strchr("*>#+ \x7F", word[i]) != NULL || (word[i] > 0 && word[i] < 0x20))
                return false;
    }
    return true;
}

static bool
is_ascii(const char *name)
{
    for (; *name != '\0'; name++)
        if (*name < 0)
            return false;
    return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *pattern = malloc(size + 1);
    char *line;
    char *topic;
    bool  is_pattern;
    bool  is_topic;

    CLAIM(pattern != NULL);
    if (size > 0)
        memcpy(pattern, data, size);
    pattern[size] = '\0';
    line = strchr(pattern, '\n');
    if (line != NULL)
        *line = '\0';
    topic = strdup(line != NULL ? line + 1 : pattern);
    CLAIM(topic != NULL);

    is_pattern = ie_pattern_check(pattern, NULL) == IE_OK;
    is_topic = ie_topic_check(topic, NULL) == IE_OK;
    CLAIM(!is_pattern || has_shape(pattern, true));
    CLAIM(!is_topic || has_shape(topic, false));
    CLAIM(is_pattern || !is_ascii(pattern) || !has_shape(pattern, true));
    CLAIM(is_topic || !is_ascii(topic) || !has_shape(topic, false));
    CLAIM(!is_topic || ie_pattern_check(topic, NULL) == IE_OK); /* each topic is a pattern */
    if (is_topic)
        CLAIM(ie_pattern_matches(topic, topic) && ie_pattern_matches(">", topic));
    if (is_pattern && is_topic)
        CLAIM(ie_pattern_matches(pattern, topic) == reference_matches(pattern, topic));
    free(topic);
    free(pattern);
    return 0;
}
