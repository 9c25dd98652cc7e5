/* The acl_file: its lines, sections, and what is wrong with them. */
#include "acl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "secret.h"
#include "units.h"

#define SECTION_BUCKETS 1024 /* a power of two */
#define WORD_SHOWN      40   /* bytes of a strange word that a message quotes */

const char *const ie__verb_names[IE__VERBS] = {"publish", "subscribe", "query", "serve", "admin"};

typedef struct named {
    ie__acl_section section;
    struct named   *chain;
} named;

struct ie__acl {
    char           *text; /* the file; rules and names point into it, terminated in place */
    ie__acl_section everyone;
    ie__acl_section anonymous;
    named          *users[SECTION_BUCKETS];
    bool            has_everyone;
    bool            has_anonymous;
    size_t          rule_count;
};

typedef struct reader {
    ie__acl         *acl;
    ie__acl_section *section; /* NULL: none has begun */
    const char      *name;
    char            *line_start;
    uint32_t         line;
    ie_error        *err;
} reader;

/* ---- what was meant ---- */

static const char *
word_at(const void *of, size_t index)
{
    return ((const char *const *)of)[index];
}

static ie_status acl_fault(const reader *r, const char *at, const char *fmt, ...) IE_PRINTF(3, 4);

static ie_status
acl_fault(const reader *r, const char *at, const char *fmt, ...)
{
    char    text[160];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return ie_error_set(r->err, IE_EINVAL, "%s:%u:%zu: %s", r->name, (unsigned)r->line,
                        (size_t)(at - r->line_start) + 1, text);
}

/* A word that is none of those that may stand here. Control characters never reach a message. */
static ie_status
acl_unknown(const reader *r, const char *at, const char *const *words, size_t count,
            const char *expected)
{
    const char *meant = ie__suggest(at, word_at, words, count);
    char        shown[WORD_SHOWN + 1];

    (void)snprintf(shown, sizeof shown, "%s", at);
    for (char *c = shown; *c != '\0'; c++)
        if (*c < 0x20 || *c == 0x7F)
            *c = '?';
    if (meant != NULL)
        return acl_fault(r, at, "unknown word '%s'; did you mean '%s'?", shown, meant);
    return acl_fault(r, at, "unknown word '%s'; expected is %s", shown, expected);
}

/* ---- words ---- */

/* The next word of the line, terminated; NULL: none. A word that begins with # ends the line. */
static char *
word_next(char **at)
{
    char *word = *at + strspn(*at, " \t\r");

    if (*word == '\0' || *word == '#')
        return NULL;
    *at = word + strcspn(word, " \t\r");
    if (**at != '\0')
        *(*at)++ = '\0';
    return word;
}

/* ---- lines ---- */

static named *
user_find(const ie__acl *acl, const char *user)
{
    named *at = acl->users[ie__hash(user, strlen(user)) & (SECTION_BUCKETS - 1)];

    while (at != NULL && strcmp(at->section.user, user) != 0)
        at = at->chain;
    return at;
}

static ie_status
begin_user(reader *r, const char *name)
{
    named **bucket;
    named  *added;

    if (strlen(name) > IE__USER_BYTES_MAX)
        return acl_fault(r, name, "a user's name has at most %d bytes", IE__USER_BYTES_MAX);
    for (const char *c = name; *c != '\0'; c++)
        if (*c < 0x21 || *c > 0x7E || strchr("*>#+", *c) != NULL)
            return acl_fault(r, c, "a user's name is made of visible ASCII without * > # +");
    if (user_find(r->acl, name) != NULL)
        return acl_fault(r, name, "user '%.40s' has a section already", name);
    added = ie__calloc(1, sizeof *added);
    if (added == NULL)
        return ie_error_set(r->err, IE_ENOMEM, "no memory for an acl");
    bucket = &r->acl->users[ie__hash(name, strlen(name)) & (SECTION_BUCKETS - 1)];
    added->section.user = name;
    added->chain = *bucket;
    *bucket = added;
    r->section = &added->section;
    return IE_OK;
}

static ie_status
begin_common(reader *r, const char *word, ie__acl_section *section, bool *has_begun)
{
    if (*has_begun)
        return acl_fault(r, word, "'%s' has a section already", word);
    *has_begun = true;
    r->section = section;
    return IE_OK;
}

static ie_status
rule_add(reader *r, const char *pattern, ie__verb verb, bool is_deny, bool has_user)
{
    ie__acl_section *section = r->section;

    if (r->acl->rule_count++ >= IE__ACL_RULES_MAX)
        return ie_error_set(r->err, IE_ETOOBIG, "%s: more than %d patterns", r->name,
                            IE__ACL_RULES_MAX);
    if (section->count == section->max) {
        const size_t  max = section->max != 0 ? section->max * 2 : 4;
        ie__acl_rule *grown = ie__realloc_array(section->rules, max, sizeof *grown);

        if (grown == NULL)
            return ie_error_set(r->err, IE_ENOMEM, "no memory for an acl");
        section->rules = grown;
        section->max = max;
    }
    section->rules[section->count++] =
        (ie__acl_rule){pattern, r->line, (uint8_t)verb, is_deny, has_user};
    return IE_OK;
}

static ie_status
read_pattern(reader *r, const char *pattern, ie__verb verb, bool is_deny)
{
    char        plain[IE_TOPIC_BYTES_MAX + 2];
    size_t      size = 0;
    bool        has_user = false;
    ie_error    why = IE_ERROR_INIT;
    const char *from = pattern;

    if (*from == '$') {
        if (verb != IE__MAY_ADMIN)
            return acl_fault(r, from,
                             "topics that begin with '$' are the bus's own; "
                             "'allow admin' is about them");
        from++;
    }
    /* %u is worth a letter here: what it becomes is checked when the user is known. */
    while (*from != '\0' && size < sizeof plain - 1) {
        const bool is_user = from[0] == '%' && from[1] == 'u';

        has_user = has_user || is_user;
        plain[size++] = is_user ? 'u' : *from;
        from += is_user ? 2 : 1;
    }
    plain[size] = '\0';
    if (ie_pattern_check(plain, &why) != IE_OK)
        return acl_fault(r, pattern, "%s", why.message);
    if (has_user && r->section == &r->acl->anonymous)
        return acl_fault(r, pattern, "%%u in 'anonymous': who is anonymous has no name");
    return rule_add(r, pattern, verb, is_deny, has_user);
}

static ie_status
read_rule(reader *r, char *first, char **at)
{
    const bool  is_deny = strcmp(first, "deny") == 0;
    char       *word = word_next(at);
    size_t      verb = 0;
    ie_status   status = IE_OK;
    const char *end = *at;

    if (r->section == NULL)
        return acl_fault(r, first, "'%s' before the first 'user NAME', 'anonymous' or 'everyone'",
                         first);
    if (word == NULL)
        return acl_fault(r, end, "'%s' what? publish, subscribe, query, serve or admin", first);
    while (verb < IE__VERBS && strcmp(word, ie__verb_names[verb]) != 0)
        verb++;
    if (verb == IE__VERBS)
        return acl_unknown(r, word, ie__verb_names, IE__VERBS,
                           "publish, subscribe, query, serve or admin");
    end = *at;
    word = word_next(at);
    if (word == NULL)
        return acl_fault(r, end, "a pattern is missing; '>' means every topic");
    for (; word != NULL && status == IE_OK; word = word_next(at))
        status = read_pattern(r, word, (ie__verb)verb, is_deny);
    return status;
}

static ie_status
read_line(reader *r, char *line)
{
    static const char *const WORDS[] = {"allow", "deny", "user", "anonymous", "everyone"};
    char                    *at = line;
    char                    *word = word_next(&at);
    char                    *name;
    ie_status                status;

    if (word == NULL)
        return IE_OK;
    if (strcmp(word, "allow") == 0 || strcmp(word, "deny") == 0)
        return read_rule(r, word, &at);
    if (strcmp(word, "user") == 0) {
        const char *end = at;

        name = word_next(&at);
        status = name == NULL ? acl_fault(r, end, "'user' without a name") : begin_user(r, name);
    } else if (strcmp(word, "everyone") == 0) {
        status = begin_common(r, word, &r->acl->everyone, &r->acl->has_everyone);
    } else if (strcmp(word, "anonymous") == 0) {
        status = begin_common(r, word, &r->acl->anonymous, &r->acl->has_anonymous);
    } else {
        return acl_unknown(r, word, WORDS, sizeof WORDS / sizeof *WORDS,
                           "allow, deny, user, anonymous or everyone");
    }
    word = status == IE_OK ? word_next(&at) : NULL;
    return word != NULL ? acl_fault(r, word, "nothing more belongs on this line") : status;
}

/* ---- the file ---- */

ie_status
ie__acl_parse(ie__acl **out, const char *text, size_t bytes, const char *name, ie_error *err)
{
    ie__acl  *acl;
    reader    r = {.name = name, .err = err};
    ie_status status = IE_OK;

    if (bytes > IE__ACL_FILE_BYTES_MAX)
        return ie_error_set(err, IE_ETOOBIG, "%s is larger than %u bytes", name,
                            IE__ACL_FILE_BYTES_MAX);
    acl = ie__calloc(1, sizeof *acl);
    if (acl != NULL)
        acl->text = ie__alloc(bytes + 1);
    if (acl == NULL || acl->text == NULL) {
        ie__acl_free(acl);
        return ie_error_set(err, IE_ENOMEM, "no memory for an acl");
    }
    if (bytes != 0)
        memcpy(acl->text, text, bytes);
    acl->text[bytes] = '\0';
    r.acl = acl;
    for (char *line = acl->text; line != NULL && status == IE_OK;) {
        char        *next = memchr(line, '\n', (size_t)(acl->text + bytes - line));
        const size_t size = (size_t)((next != NULL ? next : acl->text + bytes) - line);

        r.line++;
        r.line_start = line;
        line[size] = '\0';
        status = strlen(line) != size ? acl_fault(&r, line + strlen(line), "a NUL byte")
                                      : read_line(&r, line);
        line = next != NULL ? next + 1 : NULL;
    }
    if (status != IE_OK) {
        ie__acl_free(acl);
        return status;
    }
    *out = acl;
    return IE_OK;
}

ie_status
ie__acl_load(ie__acl **out, const char *path, ie_error *err)
{
    ie_buffer buffer = {NULL, 0, 0};
    ie_status status =
        ie__secret_file(&buffer, "acl_file", path, false, IE__ACL_FILE_BYTES_MAX, err);

    if (status == IE_OK)
        status = ie__acl_parse(out, buffer.data, buffer.size, path, err);
    ie_buffer_fini(&buffer);
    return status;
}

void
ie__acl_free(ie__acl *acl)
{
    if (acl == NULL)
        return;
    for (size_t i = 0; i < SECTION_BUCKETS; i++) {
        while (acl->users[i] != NULL) {
            named *gone = acl->users[i];

            acl->users[i] = gone->chain;
            ie__free(gone->section.rules);
            ie__free(gone);
        }
    }
    ie__free(acl->everyone.rules);
    ie__free(acl->anonymous.rules);
    ie__free(acl->text);
    ie__free(acl);
}

const ie__acl_section *
ie__acl_everyone(const ie__acl *acl)
{
    return &acl->everyone;
}

const ie__acl_section *
ie__acl_section_of(const ie__acl *acl, const char *user)
{
    const named *found;

    if (user == NULL)
        return &acl->anonymous;
    found = user_find(acl, user);
    return found != NULL ? &found->section : NULL;
}
