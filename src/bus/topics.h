/*
 * Which subscriptions does a topic reach? A tree of words for the patterns, and in front of it a
 * table of the topics that were asked for lately, with their answers.
 */
#ifndef IE_TOPICS_H
#define IE_TOPICS_H

#include <ie/event.h>

/* The cache in front: topics, and all their answers together. */
#define IE__TOPICS_CACHED_MAX         8192
#define IE__TOPICS_CACHED_TARGETS_MAX 262144

typedef struct ie__topics     ie__topics;
typedef struct ie__topic_node ie__topic_node;

/* Embedded in whatever is found by a pattern. */
typedef struct ie__topic_entry {
    ie__topic_node         *node; /* NULL: not in the index */
    struct ie__topic_entry *next;
    struct ie__topic_entry *prev;
} ie__topic_entry;

typedef struct ie__topic_match {
    ie__topic_entry **entries;
    size_t            count;
} ie__topic_match;

ie__topics *ie__topics_new(void); /* NULL: out of memory */
void        ie__topics_free(ie__topics *topics);

/* The pattern must have passed ie_pattern_check(). IE_ENOMEM: nothing was added. */
ie_status ie__topics_add(ie__topics *topics, ie__topic_entry *entry, const char *pattern);
void      ie__topics_remove(ie__topics *topics, ie__topic_entry *entry);

/* The pattern under which an entry is in the index. */
void ie__topics_pattern(char out[IE_TOPIC_BYTES_MAX + 1], const ie__topic_entry *entry);

/*
 * Everything whose pattern matches, in no particular order; each entry once. The answer belongs
 * to the index and is good until the next call of any function here. IE_EINVAL: not a topic (err
 * says why).
 */
ie_status ie__topics_match(ie__topic_match *out, ie__topics *topics, const void *topic,
                           size_t bytes, ie_error *err);

/* The first entry of exactly this pattern; NULL: none has it. */
const ie__topic_entry *ie__topics_find(const ie__topics *topics, const char *pattern);
/* Call each for every pattern that has entries, in no particular order. Nothing may be added or
 * removed meanwhile. */
void ie__topics_each(const ie__topics *topics,
                     void (*each)(void *user, const char *pattern, const ie__topic_entry *entries),
                     void *user);

/* Another number means that something was added or removed: an answer that was kept is stale. */
uint64_t ie__topics_generation(const ie__topics *topics);

#endif
