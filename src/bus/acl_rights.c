/* The rights of one user, compiled out of the acl, and the questions that the hot path asks. */
#include "acl.h"

#include <string.h>

#include "core.h"

#define CACHE_SLOTS 128 /* a power of two */

typedef struct remembered {
    char    *topic; /* NULL: empty; compared byte by byte, whatever the hash says */
    uint64_t hash;
    uint16_t bytes;
    uint8_t  known; /* a bit for each verb */
    uint8_t  allowed;
} remembered;

typedef struct rule_list {
    const char **patterns; /* those that deny first */
    size_t       count;
    size_t       denies;
    bool         is_open; /* everything is allowed */
} rule_list;

struct ie__rights {
    rule_list   verbs[IE__VERBS];
    char       *text; /* the patterns, one behind the other */
    size_t      text_bytes;
    remembered *cache; /* NULL: nobody asked yet, or no memory */
};

/* ---- patterns against patterns ---- */

static size_t
word_bytes(const char *at)
{
    return strcspn(at, ".");
}

static bool
is_word(const char *at, size_t bytes, char wildcard)
{
    return bytes == 1 && *at == wildcard;
}

bool
ie__pattern_overlaps(const char *a, const char *b)
{
    for (;;) {
        const size_t a_bytes = word_bytes(a);
        const size_t b_bytes = word_bytes(b);

        if (is_word(a, a_bytes, '>') || is_word(b, b_bytes, '>'))
            return true; /* both have a word here, and '>' takes it and the rest */
        if (!is_word(a, a_bytes, '*') && !is_word(b, b_bytes, '*') &&
            (a_bytes != b_bytes || memcmp(a, b, a_bytes) != 0))
            return false;
        a += a_bytes;
        b += b_bytes;
        if (*a == '\0' || *b == '\0')
            return *a == *b;
        a++;
        b++;
    }
}

bool
ie__pattern_covers(const char *a, const char *b)
{
    for (;;) {
        const size_t a_bytes = word_bytes(a);
        const size_t b_bytes = word_bytes(b);

        if (is_word(a, a_bytes, '>'))
            return true;
        if (is_word(b, b_bytes, '>'))
            return false;
        if (!is_word(a, a_bytes, '*') && (a_bytes != b_bytes || memcmp(a, b, a_bytes) != 0))
            return false;
        a += a_bytes;
        b += b_bytes;
        if (*a == '\0' || *b == '\0')
            return *a == *b;
        a++;
        b++;
    }
}

/* ---- compiling ---- */

typedef struct compiler {
    const ie__acl_section *sections[2];
    const char            *user;
    ie_buffer              text; /* patterns, terminated */
    ie__rights            *rights;
} compiler;

static ie_status
put_pattern(compiler *c, const ie__acl_rule *rule)
{
    const char *at = rule->pattern;
    const char *end;
    ie_status   status = IE_OK;

    while (status == IE_OK && rule->has_user && (end = strstr(at, "%u")) != NULL) {
        status = ie__buffer_add(&c->text, at, (size_t)(end - at));
        if (status == IE_OK)
            status = ie__buffer_text(&c->text, c->user);
        at = end + 2;
    }
    return status == IE_OK ? ie__buffer_add(&c->text, at, strlen(at) + 1) : status;
}

/* Who has no name is not meant by lines with %u. */
static bool
is_meant(const compiler *c, const ie__acl_rule *rule, size_t verb)
{
    return rule->verb == verb && (c->user != NULL || !rule->has_user);
}

static size_t
count_rules(const compiler *c, size_t verb)
{
    size_t count = 0;

    for (size_t s = 0; s < 2; s++)
        for (size_t i = 0; c->sections[s] != NULL && i < c->sections[s]->count; i++)
            count += is_meant(c, &c->sections[s]->rules[i], verb);
    return count;
}

/* The patterns' texts first, since the buffer moves as it grows; then the pointers to them. */
static ie_status
compile_texts(compiler *c)
{
    ie_status status = IE_OK;

    for (size_t verb = 0; verb < IE__VERBS; verb++)
        for (int deny = 1; deny >= 0; deny--)
            for (size_t s = 0; s < 2; s++)
                for (size_t i = 0; c->sections[s] != NULL && i < c->sections[s]->count; i++) {
                    const ie__acl_rule *rule = &c->sections[s]->rules[i];

                    if (status == IE_OK && is_meant(c, rule, verb) &&
                        rule->is_deny == (deny != 0)) {
                        c->rights->verbs[verb].denies += rule->is_deny;
                        status = put_pattern(c, rule);
                    }
                }
    return status;
}

static ie_status
compile(compiler *c)
{
    ie__rights *rights = c->rights;
    const char *at;

    if (compile_texts(c) != IE_OK)
        return IE_ENOMEM;
    rights->text = c->text.data;
    rights->text_bytes = c->text.size;
    at = rights->text;
    for (size_t verb = 0; verb < IE__VERBS; verb++) {
        rule_list *list = &rights->verbs[verb];

        list->count = count_rules(c, verb);
        if (list->count == 0)
            continue;
        list->patterns = ie__realloc_array(NULL, list->count, sizeof *list->patterns);
        if (list->patterns == NULL)
            return IE_ENOMEM;
        for (size_t i = 0; i < list->count; i++, at += strlen(at) + 1) {
            list->patterns[i] = at;
            list->is_open = list->is_open || (list->denies == 0 && strcmp(at, ">") == 0);
        }
    }
    return IE_OK;
}

/* A name that is more or less than one word would turn "inbox.%u" into another place. */
static ie_status
check_user(const compiler *c, ie_error *err)
{
    if (c->user == NULL || strpbrk(c->user, ".*>#+$") == NULL)
        return IE_OK;
    for (size_t s = 0; s < 2; s++)
        for (size_t i = 0; c->sections[s] != NULL && i < c->sections[s]->count; i++)
            if (c->sections[s]->rules[i].has_user)
                return ie_error_set(err, IE_EDENIED,
                                    "line %u of the acl has %%u, for which a name has to be one "
                                    "word without wildcards",
                                    (unsigned)c->sections[s]->rules[i].line);
    return IE_OK;
}

ie_status
ie__rights_new(ie__rights **out, const ie__acl *acl, const char *user, ie_error *err)
{
    compiler c = {.sections = {ie__acl_everyone(acl), ie__acl_section_of(acl, user)}, .user = user};
    ie_status status = check_user(&c, err);

    if (status != IE_OK)
        return status;
    c.rights = ie__calloc(1, sizeof *c.rights);
    if (c.rights == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a user's rights");
    status = compile(&c);
    if (status != IE_OK) {
        c.rights->text = c.text.data;
        ie__rights_free(c.rights);
        return ie_error_set(err, IE_ENOMEM, "no memory for a user's rights");
    }
    *out = c.rights;
    return IE_OK;
}

void
ie__rights_free(ie__rights *rights)
{
    if (rights == NULL)
        return;
    for (size_t i = 0; rights->cache != NULL && i < CACHE_SLOTS; i++)
        ie__free(rights->cache[i].topic);
    for (size_t verb = 0; verb < IE__VERBS; verb++)
        ie__free((void *)rights->verbs[verb].patterns);
    ie__free(rights->cache);
    ie__free(rights->text);
    ie__free(rights);
}

bool
ie__rights_equal(const ie__rights *a, const ie__rights *b)
{
    for (size_t verb = 0; verb < IE__VERBS; verb++)
        if (a->verbs[verb].count != b->verbs[verb].count ||
            a->verbs[verb].denies != b->verbs[verb].denies)
            return false;
    return a->text_bytes == b->text_bytes &&
           (a->text_bytes == 0 || memcmp(a->text, b->text, a->text_bytes) == 0);
}

/* ---- asking ---- */

static bool
decide(const rule_list *list, const char *topic)
{
    for (size_t i = 0; i < list->count; i++)
        if (ie_pattern_matches(list->patterns[i], topic))
            return i >= list->denies;
    return false;
}

/* Quick, and anybody's to predict: a crowd in one slot costs time, never a wrong answer. */
static uint64_t
topic_hash(const char *topic, size_t bytes)
{
    uint64_t hash = bytes;
    uint64_t word = 0;

    for (; bytes >= sizeof word; bytes -= sizeof word, topic += sizeof word) {
        memcpy(&word, topic, sizeof word);
        hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
        hash ^= hash >> 29;
    }
    word = 0;
    memcpy(&word, topic, bytes);
    hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return hash ^ hash >> 32;
}

/* The slot of this topic, emptied of another; NULL: no memory. */
static remembered *
cache_slot(ie__rights *rights, const void *topic, size_t bytes)
{
    const uint64_t hash = topic_hash(topic, bytes);
    remembered    *slot;
    char          *copy;

    if (rights->cache == NULL)
        rights->cache = ie__calloc(CACHE_SLOTS, sizeof *rights->cache);
    if (rights->cache == NULL)
        return NULL;
    slot = &rights->cache[hash & (CACHE_SLOTS - 1)];
    if (slot->topic != NULL && slot->hash == hash && slot->bytes == bytes &&
        memcmp(slot->topic, topic, bytes) == 0)
        return slot;
    copy = ie__alloc(bytes + 1);
    if (copy == NULL)
        return NULL;
    memcpy(copy, topic, bytes);
    copy[bytes] = '\0';
    ie__free(slot->topic);
    *slot = (remembered){copy, hash, (uint16_t)bytes, 0, 0};
    return slot;
}

bool
ie__rights_topic(ie__rights *rights, ie__verb verb, const void *topic, size_t bytes)
{
    const rule_list *list = &rights->verbs[verb];
    const uint8_t    bit = (uint8_t)(1u << verb);
    remembered      *slot;

    if (list->is_open)
        return true;
    if (bytes > IE_TOPIC_BYTES_MAX || list->count == list->denies)
        return false;
    slot = cache_slot(rights, topic, bytes);
    if (slot == NULL) {
        char text[IE_TOPIC_BYTES_MAX + 1];

        memcpy(text, topic, bytes);
        text[bytes] = '\0';
        return decide(list, text);
    }
    if ((slot->known & bit) == 0) {
        slot->known |= bit;
        if (decide(list, slot->topic))
            slot->allowed |= bit;
    }
    return (slot->allowed & bit) != 0;
}

bool
ie__rights_whole(const ie__rights *rights, ie__verb verb, const char *pattern)
{
    const rule_list *list = &rights->verbs[verb];
    bool             is_covered = false;

    for (size_t i = 0; i < list->denies; i++)
        if (ie__pattern_overlaps(list->patterns[i], pattern))
            return false;
    for (size_t i = list->denies; i < list->count && !is_covered; i++)
        is_covered = ie__pattern_covers(list->patterns[i], pattern);
    return is_covered;
}

bool
ie__rights_some(const ie__rights *rights, ie__verb verb, const char *pattern)
{
    const rule_list *list = &rights->verbs[verb];
    bool             is_met = false;

    for (size_t i = 0; i < list->denies; i++)
        if (ie__pattern_covers(list->patterns[i], pattern))
            return false;
    for (size_t i = list->denies; i < list->count && !is_met; i++)
        is_met = ie__pattern_overlaps(list->patterns[i], pattern);
    return is_met;
}
