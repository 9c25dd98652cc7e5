/*
 * Who may do what: the acl_file, and the rights that it gives to one user. Pure: nothing of
 * connections here. Deny wins, and what no line allows is denied.
 */
#ifndef IE_ACL_H
#define IE_ACL_H

#include <ie/event.h>

#define IE__ACL_FILE_BYTES_MAX (8u << 20)
#define IE__ACL_RULES_MAX      100000
#define IE__USER_BYTES_MAX     255
#define IE__ANONYMOUS          "anonymous" /* as WELCOME and the log name who has no name */

typedef enum ie__verb {
    IE__MAY_PUBLISH,
    IE__MAY_SUBSCRIBE,
    IE__MAY_QUERY,
    IE__MAY_SERVE,
    IE__MAY_ADMIN, /* topics below "$bus" */
    IE__VERBS
} ie__verb;
extern const char *const ie__verb_names[IE__VERBS];

/* ---- the file ---- */

typedef struct ie__acl ie__acl; /* never changes once it is read; several may share it */

/* name is for messages: "NAME:LINE:COLUMN: what is wrong". IE_EINVAL, IE_ETOOBIG, IE_ENOMEM. */
ie_status ie__acl_parse(ie__acl **out, const char *text, size_t bytes, const char *name,
                        ie_error *err);
ie_status ie__acl_load(ie__acl **out, const char *path, ie_error *err);
void      ie__acl_free(ie__acl *acl); /* NULL is accepted */

/* ---- the rights of one user ---- */

typedef struct ie__rights ie__rights;

/*
 * What the acl says for this user: the lines for everyone, and its own. user NULL: anonymous.
 * Copied: the acl may go. IE_EDENIED: lines with %u speak of this user, whose name has a dot or a
 * wildcard. IE_ENOMEM.
 */
ie_status ie__rights_new(ie__rights **out, const ie__acl *acl, const char *user, ie_error *err);
void      ie__rights_free(ie__rights *rights); /* NULL is accepted */
bool      ie__rights_equal(const ie__rights *a, const ie__rights *b);

/* May this topic be published to, received, asked ...? Remembers recent answers. */
bool ie__rights_topic(ie__rights *rights, ie__verb verb, const void *topic, size_t bytes);
/* Is every topic of this pattern allowed? */
bool ie__rights_whole(const ie__rights *rights, ie__verb verb, const char *pattern);
/* May some topic of this pattern be allowed? False is certain. */
bool ie__rights_some(const ie__rights *rights, ie__verb verb, const char *pattern);

/* Does a topic exist that both match; does a match every topic that b does? */
bool ie__pattern_overlaps(const char *a, const char *b);
bool ie__pattern_covers(const char *a, const char *b);

/* For acl_rights.c: the rules in file order. */
typedef struct ie__acl_rule {
    const char *pattern; /* terminated, in the acl's own memory */
    uint32_t    line;
    uint8_t     verb;
    bool        is_deny;
    bool        has_user; /* %u is to be replaced */
} ie__acl_rule;
typedef struct ie__acl_section {
    const char   *user; /* NULL: everyone, or anonymous */
    ie__acl_rule *rules;
    size_t        count;
    size_t        max;
} ie__acl_section;
const ie__acl_section *ie__acl_everyone(const ie__acl *acl);
/* user NULL: anonymous. NULL: there is none. */
const ie__acl_section *ie__acl_section_of(const ie__acl *acl, const char *user);

#endif
