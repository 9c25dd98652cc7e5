/*
 * Input: a byte that says which, then an acl_file or a users_file. What is read must answer every
 * question the same way twice, and as the plain matcher says; what is refused must say where.
 */
#include <string.h>

#include "acl.h"
#include "fuzz.h"
#include "users.h"

static const char *const TOPICS[] = {"a", "a.b", "a.b.c", "b", "$bus.status", "inbox.ann.x", "c.d"};
static const char *const PATTERNS[] = {"a", "a.*", ">", "*", "a.>", "*.b", "inbox.ann.>"};

#define COUNT(list) (sizeof(list) / sizeof *(list))

static void
try_rights(const ie__acl *acl, const char *user)
{
    ie__rights *rights = NULL;
    ie__rights *again = NULL;
    ie_error    err = IE_ERROR_INIT;

    if (ie__rights_new(&rights, acl, user, &err) != IE_OK) {
        CLAIM(err.message[0] != '\0');
        return;
    }
    CLAIM(ie__rights_new(&again, acl, user, &err) == IE_OK && ie__rights_equal(rights, again));
    for (int verb = 0; verb < IE__VERBS; verb++) {
        for (size_t t = 0; t < COUNT(TOPICS); t++) {
            const bool may = ie__rights_topic(rights, (ie__verb)verb, TOPICS[t], strlen(TOPICS[t]));

            CLAIM(may == ie__rights_topic(again, (ie__verb)verb, TOPICS[t], strlen(TOPICS[t])));
            CLAIM(may == ie__rights_topic(rights, (ie__verb)verb, TOPICS[t], strlen(TOPICS[t])));
            for (size_t p = 0; p < COUNT(PATTERNS); p++) {
                if (!ie_pattern_matches(PATTERNS[p], TOPICS[t]))
                    continue;
                /* a whole pattern has only allowed topics; one with none allowed has not this */
                CLAIM(may || !ie__rights_whole(rights, (ie__verb)verb, PATTERNS[p]));
                CLAIM(!may || ie__rights_some(rights, (ie__verb)verb, PATTERNS[p]));
            }
        }
    }
    ie__rights_free(rights);
    ie__rights_free(again);
}

static void
try_acl(const char *text, size_t size)
{
    ie__acl *acl = NULL;
    ie_error err = IE_ERROR_INIT;

    if (ie__acl_parse(&acl, text, size, "acl", &err) != IE_OK) {
        CLAIM(strncmp(err.message, "acl", 3) == 0);
        for (const char *c = err.message; *c != '\0'; c++)
            CLAIM((unsigned char)*c >= 0x20 && *c != 0x7F);
        return;
    }
    try_rights(acl, NULL);
    try_rights(acl, "ann");
    try_rights(acl, "a.b");
    ie__acl_free(acl);
}

static void
try_users(const char *text, size_t size)
{
    ie__users *users = NULL;
    ie_error   err = IE_ERROR_INIT;
    ie__scrypt stored;

    if (ie__users_parse(&users, text, size, "users", &err) != IE_OK) {
        CLAIM(strncmp(err.message, "users", 5) == 0);
        return;
    }
    CLAIM(ie__users_has(users, "ann", false) == ie__users_password(users, "ann", &stored));
    CLAIM(UINT64_C(128) * stored.n * stored.r <= IE__SCRYPT_MEMORY_MAX);
    CLAIM(ie__users_token(users, "guess", 5) == NULL);
    ie__users_free(users);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if ((data[0] & 1) != 0)
        try_acl((const char *)data + 1, size - 1);
    else
        try_users((const char *)data + 1, size - 1);
    return 0;
}
