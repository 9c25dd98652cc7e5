/* The index of patterns. */
#include "topics.h"

#include <string.h>

#include "core.h"

/* A node stands for the words that lead to it; "*" and ">" are children like any other. All nodes
 * hang in one table keyed by parent and word, so a node with 100,000 children is nothing special.
 */
struct ie__topic_node {
    ie__topic_node  *parent;
    ie__topic_node  *chain; /* same bucket */
    ie__topic_entry *entries;
    ie__topic_node  *star; /* the children "*" and ">": asked for at every step of every walk */
    ie__topic_node  *rest;
    uint64_t         hash;
    uint64_t         salt; /* mixes this node into the hashes of its children */
    size_t           children;
    size_t           words; /* of these the others */
    size_t           word_bytes;
    char             word[];
};

typedef struct cached {
    struct cached    *chain;
    uint64_t          hash;
    uint64_t          generation;
    ie__topic_entry **entries;
    size_t            count;
    size_t            topic_bytes;
    char              topic[]; /* terminated */
} cached;

#define CACHE_BUCKETS 8192 /* a power of two */
#define FRONT_SLOTS   256  /* a power of two */

struct ie__topics {
    ie__topic_node  *root;
    ie__topic_node **buckets;
    size_t           bucket_count; /* a power of two */
    size_t           node_count;
    uint64_t         generation;  /* grows with each add and remove: cached answers get stale */
    ie__topic_node **frontier[2]; /* the walk's present and next states */
    size_t           frontier_max[2];
    cached         **cache;
    cached          *front[FRONT_SLOTS]; /* into the cache; what two topics share is looked up */
    size_t           cached_topics;
    size_t           cached_targets;
    uint64_t         salts;
};

ie__topics *
ie__topics_new(void)
{
    ie__topics *topics = ie__calloc(1, sizeof *topics);

    if (topics == NULL)
        return NULL;
    topics->bucket_count = 64;
    topics->root = ie__calloc(1, sizeof(ie__topic_node));
    topics->buckets = ie__calloc(topics->bucket_count, sizeof(ie__topic_node *));
    topics->cache = ie__calloc(CACHE_BUCKETS, sizeof(cached *));
    if (topics->root == NULL || topics->buckets == NULL || topics->cache == NULL) {
        ie__topics_free(topics);
        return NULL;
    }
    return topics;
}

static void
cache_clear(ie__topics *topics)
{
    for (size_t i = 0; i < CACHE_BUCKETS && topics->cached_topics > 0; i++) {
        while (topics->cache[i] != NULL) {
            cached *gone = topics->cache[i];

            topics->cache[i] = gone->chain;
            ie__free(gone->entries);
            ie__free(gone);
            topics->cached_topics--;
        }
    }
    memset(topics->front, 0, sizeof topics->front);
    topics->cached_targets = 0;
}

void
ie__topics_free(ie__topics *topics)
{
    if (topics == NULL)
        return;
    if (topics->cache != NULL)
        cache_clear(topics);
    for (size_t i = 0; topics->buckets != NULL && i < topics->bucket_count; i++) {
        while (topics->buckets[i] != NULL) {
            ie__topic_node *gone = topics->buckets[i];

            topics->buckets[i] = gone->chain;
            ie__free(gone);
        }
    }
    ie__free(topics->root);
    ie__free(topics->buckets);
    ie__free(topics->cache);
    ie__free(topics->frontier[0]);
    ie__free(topics->frontier[1]);
    ie__free(topics);
}

/* ---- nodes ---------------------------------------------------------------------------------- */

static uint64_t
node_hash(const ie__topic_node *parent, uint64_t word_hash)
{
    uint64_t h = word_hash ^ parent->salt;

    h *= UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 32;
}

static ie__topic_node *
node_child(const ie__topics *topics, const ie__topic_node *parent, uint64_t word_hash,
           const char *word, size_t bytes)
{
    const uint64_t  hash = node_hash(parent, word_hash);
    ie__topic_node *node = topics->buckets[hash & (topics->bucket_count - 1)];

    while (node != NULL && !(node->hash == hash && node->parent == parent &&
                             node->word_bytes == bytes && memcmp(node->word, word, bytes) == 0))
        node = node->chain;
    return node;
}

static void
nodes_grow(ie__topics *topics)
{
    const size_t     count = topics->bucket_count * 2;
    ie__topic_node **buckets;

    buckets = count < topics->bucket_count ? NULL : ie__calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return; /* longer chains, no harm */
    for (size_t i = 0; i < topics->bucket_count; i++) {
        while (topics->buckets[i] != NULL) {
            ie__topic_node *node = topics->buckets[i];

            topics->buckets[i] = node->chain;
            node->chain = buckets[node->hash & (count - 1)];
            buckets[node->hash & (count - 1)] = node;
        }
    }
    ie__free(topics->buckets);
    topics->buckets = buckets;
    topics->bucket_count = count;
}

static bool
is_word(const ie__topic_node *node, char word)
{
    return node->word_bytes == 1 && node->word[0] == word;
}

static void
node_count_child(ie__topic_node *parent, ie__topic_node *child, bool is_there)
{
    if (is_word(child, '*'))
        parent->star = is_there ? child : NULL;
    else if (is_word(child, '>'))
        parent->rest = is_there ? child : NULL;
    else if (is_there)
        parent->words++;
    else
        parent->words--;
    if (is_there)
        parent->children++;
    else
        parent->children--;
}

static ie__topic_node *
node_add(ie__topics *topics, ie__topic_node *parent, uint64_t word_hash, const char *word,
         size_t bytes)
{
    ie__topic_node *node = ie__calloc(1, sizeof *node + bytes);
    size_t          bucket;

    if (node == NULL)
        return NULL;
    node->parent = parent;
    node->hash = node_hash(parent, word_hash);
    node->salt = ++topics->salts * UINT64_C(0xD6E8FEB86659FD93);
    node->word_bytes = bytes;
    memcpy(node->word, word, bytes);
    if (topics->node_count++ >= topics->bucket_count)
        nodes_grow(topics);
    bucket = node->hash & (topics->bucket_count - 1);
    node->chain = topics->buckets[bucket];
    topics->buckets[bucket] = node;
    node_count_child(parent, node, true);
    return node;
}

/* Remove nodes that lead nowhere, from this one towards the root. */
static void
nodes_prune(ie__topics *topics, ie__topic_node *node)
{
    while (node != topics->root && node->entries == NULL && node->children == 0) {
        ie__topic_node  *parent = node->parent;
        ie__topic_node **link = &topics->buckets[node->hash & (topics->bucket_count - 1)];

        while (*link != node)
            link = &(*link)->chain;
        *link = node->chain;
        node_count_child(parent, node, false);
        ie__free(node);
        topics->node_count--;
        node = parent;
    }
}

static size_t
word_length(const char *text, size_t bytes)
{
    const char *dot = memchr(text, '.', bytes);

    return dot != NULL ? (size_t)(dot - text) : bytes;
}

ie_status
ie__topics_add(ie__topics *topics, ie__topic_entry *entry, const char *pattern)
{
    ie__topic_node *node = topics->root;
    size_t          left = strlen(pattern);

    for (;;) {
        const size_t    bytes = word_length(pattern, left);
        const uint64_t  word_hash = ie__hash(pattern, bytes);
        ie__topic_node *child = node_child(topics, node, word_hash, pattern, bytes);

        if (child == NULL)
            child = node_add(topics, node, word_hash, pattern, bytes);
        if (child == NULL) {
            nodes_prune(topics, node);
            return IE_ENOMEM;
        }
        node = child;
        if (bytes == left)
            break;
        pattern += bytes + 1;
        left -= bytes + 1;
    }
    entry->node = node;
    entry->prev = NULL;
    entry->next = node->entries;
    if (node->entries != NULL)
        node->entries->prev = entry;
    node->entries = entry;
    topics->generation++;
    return IE_OK;
}

void
ie__topics_remove(ie__topics *topics, ie__topic_entry *entry)
{
    ie__topic_node *node = entry->node;

    if (node == NULL)
        return;
    if (entry->next != NULL)
        entry->next->prev = entry->prev;
    if (entry->prev != NULL)
        entry->prev->next = entry->next;
    else
        node->entries = entry->next;
    entry->node = NULL;
    nodes_prune(topics, node);
    topics->generation++;
}

/* ---- matching ------------------------------------------------------------------------------- */

typedef struct walk {
    ie__topics *topics;
    cached     *answer;
    size_t      capacity;
    size_t      states[2]; /* how many are in each frontier */
} walk;

static ie_status
walk_take(walk *w, const ie__topic_node *node)
{
    for (ie__topic_entry *entry = node->entries; entry != NULL; entry = entry->next) {
        if (w->answer->count == w->capacity) {
            const size_t      capacity = w->capacity != 0 ? w->capacity * 2 : 4;
            ie__topic_entry **grown =
                ie__realloc_array(w->answer->entries, capacity, sizeof *grown);

            if (grown == NULL)
                return IE_ENOMEM;
            w->answer->entries = grown;
            w->capacity = capacity;
        }
        w->answer->entries[w->answer->count++] = entry;
    }
    return IE_OK;
}

static ie_status
walk_state(walk *w, int which, ie__topic_node *node)
{
    ie__topics *topics = w->topics;

    if (node == NULL)
        return IE_OK;
    if (w->states[which] == topics->frontier_max[which]) {
        const size_t max = topics->frontier_max[which] != 0 ? topics->frontier_max[which] * 2 : 8;
        ie__topic_node **grown = ie__realloc_array(topics->frontier[which], max, sizeof *grown);

        if (grown == NULL)
            return IE_ENOMEM;
        topics->frontier[which] = grown;
        topics->frontier_max[which] = max;
    }
    topics->frontier[which][w->states[which]++] = node;
    return IE_OK;
}

static ie_status
walk_all(walk *w, const char *topic, size_t left)
{
    ie__topics *topics = w->topics;
    int         now = 0;
    ie_status   status = walk_state(w, now, topics->root);

    while (status == IE_OK && w->states[now] > 0) {
        const size_t   bytes = word_length(topic, left);
        const uint64_t word = ie__hash(topic, bytes);
        const bool     is_last = bytes == left;

        w->states[!now] = 0;
        for (size_t i = 0; i < w->states[now] && status == IE_OK; i++) {
            const ie__topic_node *node = topics->frontier[now][i];

            if (node->rest != NULL)
                status = walk_take(w, node->rest);
            if (status == IE_OK && node->words != 0)
                status = walk_state(w, !now, node_child(topics, node, word, topic, bytes));
            if (status == IE_OK)
                status = walk_state(w, !now, node->star);
        }
        now = !now;
        if (is_last)
            break;
        topic += bytes + 1;
        left -= bytes + 1;
    }
    for (size_t i = 0; i < w->states[now] && status == IE_OK; i++)
        status = walk_take(w, topics->frontier[now][i]);
    return status;
}

/* Cheap, and guessable: who makes topics collide here only makes them take the longer way. */
static size_t
front_slot(const unsigned char *topic, size_t bytes)
{
    uint64_t first = 0;
    uint64_t last = 0;

    if (bytes >= 8) {
        memcpy(&first, topic, 8);
        memcpy(&last, topic + bytes - 8, 8);
    } else {
        memcpy(&first, topic, bytes);
    }
    first = (first ^ bytes) * UINT64_C(0x9E3779B97F4A7C15) ^ last;
    return (size_t)(first * UINT64_C(0xD6E8FEB86659FD93) >> 32) & (FRONT_SLOTS - 1);
}

static cached *
cache_find(const ie__topics *topics, uint64_t hash, const void *topic, size_t bytes)
{
    cached *found = topics->cache[hash & (CACHE_BUCKETS - 1)];

    while (found != NULL && !(found->hash == hash && found->topic_bytes == bytes &&
                              memcmp(found->topic, topic, bytes) == 0))
        found = found->chain;
    return found;
}

static ie_status
cache_add(cached **out, ie__topics *topics, uint64_t hash, const void *topic, size_t bytes,
          ie_error *err)
{
    cached *made = ie__calloc(1, sizeof *made + bytes + 1);

    if (made == NULL)
        return ie_error_set(err, IE_ENOMEM, "no memory for a topic");
    memcpy(made->topic, topic, bytes);
    made->topic_bytes = bytes;
    made->hash = hash;
    if (memchr(made->topic, 0, bytes) != NULL || ie_topic_check(made->topic, err) != IE_OK) {
        ie__free(made);
        return ie_error_set(err, IE_EINVAL, "topic: contains NUL");
    }
    if (topics->cached_topics >= IE__TOPICS_CACHED_MAX)
        cache_clear(topics);
    made->generation = topics->generation - 1; /* no answer yet */
    made->chain = topics->cache[hash & (CACHE_BUCKETS - 1)];
    topics->cache[hash & (CACHE_BUCKETS - 1)] = made;
    topics->cached_topics++;
    *out = made;
    return IE_OK;
}

ie_status
ie__topics_match(ie__topic_match *out, ie__topics *topics, const void *topic, size_t bytes,
                 ie_error *err)
{
    const size_t slot = front_slot(topic, bytes);
    cached      *found;

    if (topics->cached_targets > IE__TOPICS_CACHED_TARGETS_MAX)
        cache_clear(topics);
    found = topics->front[slot];
    if (found == NULL || found->topic_bytes != bytes || memcmp(found->topic, topic, bytes) != 0) {
        const uint64_t hash = ie__hash(topic, bytes);

        found = cache_find(topics, hash, topic, bytes);
        if (found == NULL) {
            const ie_status status = cache_add(&found, topics, hash, topic, bytes, err);

            if (status != IE_OK)
                return status;
        }
        topics->front[slot] = found;
    }
    if (found->generation != topics->generation) {
        walk      w = {topics, found, 0, {0, 0}};
        ie_status status;

        topics->cached_targets -= found->count;
        ie__free(found->entries);
        found->entries = NULL;
        found->count = 0;
        status = walk_all(&w, found->topic, bytes);
        topics->cached_targets += found->count;
        if (status != IE_OK)
            return ie_error_set(err, status, "no memory to route a topic");
        found->generation = topics->generation;
    }
    out->entries = found->entries;
    out->count = found->count;
    return IE_OK;
}

void
ie__topics_pattern(char out[IE_TOPIC_BYTES_MAX + 1], const ie__topic_entry *entry)
{
    size_t at = IE_TOPIC_BYTES_MAX;

    /* From its last word to its first; it was checked to be no longer than this. */
    out[at] = '\0';
    for (const ie__topic_node *node = entry->node; node != NULL && node->parent != NULL;
         node = node->parent) {
        if (out[at] != '\0')
            out[--at] = '.';
        at -= node->word_bytes;
        memcpy(out + at, node->word, node->word_bytes);
    }
    memmove(out, out + at, IE_TOPIC_BYTES_MAX + 1 - at);
}

/* ---- looking -------------------------------------------------------------------------------- */

const ie__topic_entry *
ie__topics_find(const ie__topics *topics, const char *pattern)
{
    const ie__topic_node *node = topics->root;
    size_t                left = strlen(pattern);

    for (;;) {
        const size_t bytes = word_length(pattern, left);

        node = node_child(topics, node, ie__hash(pattern, bytes), pattern, bytes);
        if (node == NULL)
            return NULL;
        if (bytes == left)
            return node->entries;
        pattern += bytes + 1;
        left -= bytes + 1;
    }
}

void
ie__topics_each(const ie__topics *topics,
                void (*each)(void *user, const char *pattern, const ie__topic_entry *entries),
                void *user)
{
    char pattern[IE_TOPIC_BYTES_MAX + 1];

    for (size_t i = 0; i < topics->bucket_count; i++)
        for (const ie__topic_node *node = topics->buckets[i]; node != NULL; node = node->chain)
            if (node->entries != NULL) {
                ie__topics_pattern(pattern, node->entries);
                each(user, pattern, node->entries);
            }
}

uint64_t
ie__topics_generation(const ie__topics *topics)
{
    return topics->generation;
}
