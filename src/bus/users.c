/* The users_file in memory: reading it, and the two checks. */
#include "users.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "secret.h"

#define NAME_MAX_ 64
#define BUCKETS   1024 /* a power of two */

typedef struct known {
    struct known *chain;
    struct known *next; /* all of them, for tokens */
    ie__scrypt    password;
    unsigned char token[IE__HASH_BYTES];
    bool          has_password;
    bool          has_token;
    char          name[];
} known;

struct ie__users {
    known     *buckets[BUCKETS];
    known     *all;
    size_t     count;
    ie__scrypt decoy; /* the dearest parameters of the file, with a hash that fits nothing */
};

typedef struct reader {
    ie__users  *users;
    const char *name;
    const char *line_start;
    unsigned    line;
    ie_error   *err;
} reader;

const char *
ie__user_name_fault(const char *name)
{
    const size_t bytes = strlen(name);

    if (bytes == 0 || bytes > NAME_MAX_)
        return "a user's name has 1 to 64 bytes";
    if (strcmp(name, "anonymous") == 0 || strcmp(name, "everyone") == 0)
        return "this name has a meaning of its own; take another";
    for (const char *c = name; *c != '\0'; c++) {
        const char lower = (char)(*c | 0x20);
        const bool is_plain = (lower >= 'a' && lower <= 'z') || (*c >= '0' && *c <= '9');

        if (!is_plain && (c == name || strchr("._-@", *c) == NULL))
            return "a user's name is made of letters, digits and . _ - @, and begins with one of "
                   "the first two";
    }
    return NULL;
}

/* ---- lines ---- */

static ie_status
users_fault(const reader *r, const char *at, const char *what)
{
    return ie_error_set(r->err, IE_EINVAL, "%s:%u:%zu: %s", r->name, r->line,
                        (size_t)(at - r->line_start) + 1, what);
}

/* The next field; *at moves behind its colon, or becomes NULL at the end of the line. */
static const char *
field_next(const char **at, size_t *bytes)
{
    const char *field = *at;

    if (field == NULL)
        return NULL;
    *bytes = strcspn(field, ":");
    *at = field[*bytes] == ':' ? field + *bytes + 1 : NULL;
    return field;
}

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static ie_status
read_hex(const reader *r, const char **at, unsigned char *out, size_t size, const char *what)
{
    size_t      bytes = 0;
    const char *field = field_next(at, &bytes);

    if (field == NULL)
        return users_fault(r, r->line_start + strlen(r->line_start), what);
    if (bytes != 2 * size)
        return users_fault(r, field, what);
    for (size_t i = 0; i < size; i++) {
        const int high = hex_digit(field[2 * i]);
        const int low = hex_digit(field[2 * i + 1]);

        if (high < 0 || low < 0)
            return users_fault(r, field + 2 * i, what);
        out[i] = (unsigned char)(high * 16 + low);
    }
    return IE_OK;
}

static ie_status
read_number(const reader *r, const char **at, uint32_t *out)
{
    size_t      bytes = 0;
    const char *field = field_next(at, &bytes);
    uint32_t    value = 0;

    if (field == NULL || bytes == 0 || bytes > 7)
        return users_fault(r, field != NULL ? field : r->line_start,
                           "three numbers have to follow 'scrypt'");
    for (size_t i = 0; i < bytes; i++) {
        if (field[i] < '0' || field[i] > '9')
            return users_fault(r, field + i, "not a number");
        value = value * 10 + (uint32_t)(field[i] - '0');
    }
    *out = value;
    return IE_OK;
}

static ie_status
read_scrypt(const reader *r, const char **at, ie__scrypt *out)
{
    const char *numbers = *at != NULL ? *at : r->line_start;
    ie_status   status = read_number(r, at, &out->n);

    if (status == IE_OK)
        status = read_number(r, at, &out->r);
    if (status == IE_OK)
        status = read_number(r, at, &out->p);
    if (status != IE_OK)
        return status;
    if (out->n < 2 || (out->n & (out->n - 1)) != 0 || out->r < 1 || out->r > 64 || out->p < 1 ||
        out->p > 64 || UINT64_C(128) * out->n * out->r > IE__SCRYPT_MEMORY_MAX)
        return users_fault(r, numbers, "these numbers are none for scrypt, or ask for too much");
    status = read_hex(r, at, out->salt, sizeof out->salt,
                      "a salt of 32 hexadecimal digits belongs here");
    if (status == IE_OK)
        status = read_hex(r, at, out->hash, sizeof out->hash,
                          "a hash of 64 hexadecimal digits belongs here");
    return status;
}

static known *
users_find(const ie__users *users, const char *name)
{
    known *at = users->buckets[ie__hash(name, strlen(name)) & (BUCKETS - 1)];

    while (at != NULL && strcmp(at->name, name) != 0)
        at = at->chain;
    return at;
}

static ie_status
users_add(const reader *r, const char *name, size_t bytes, known **out)
{
    ie__users *users = r->users;
    known    **bucket;
    known     *added;

    if (users->count >= IE__USERS_MAX)
        return ie_error_set(r->err, IE_ETOOBIG, "%s: more than %d users", r->name, IE__USERS_MAX);
    added = ie__calloc(1, sizeof *added + bytes + 1);
    if (added == NULL)
        return ie_error_set(r->err, IE_ENOMEM, "no memory for users");
    memcpy(added->name, name, bytes);
    bucket = &users->buckets[ie__hash(name, bytes) & (BUCKETS - 1)];
    added->chain = *bucket;
    *bucket = added;
    added->next = users->all;
    users->all = added;
    users->count++;
    *out = added;
    return IE_OK;
}

static bool
is_field(const char *field, size_t bytes, const char *word)
{
    return field != NULL && bytes == strlen(word) && memcmp(field, word, bytes) == 0;
}

static ie_status
read_user(const reader *r, const char *line)
{
    char        name[NAME_MAX_ + 1];
    const char *at = line;
    size_t      bytes = 0;
    const char *field = field_next(&at, &bytes);
    const char *fault;
    known      *user;
    ie_status   status = IE_OK;

    if (bytes > NAME_MAX_)
        return users_fault(r, field, "a user's name has 1 to 64 bytes");
    memcpy(name, field, bytes);
    name[bytes] = '\0';
    fault = ie__user_name_fault(name);
    if (fault != NULL)
        return users_fault(r, field, fault);
    user = users_find(r->users, name);
    if (user == NULL)
        status = users_add(r, name, bytes, &user);
    if (status != IE_OK)
        return status;
    field = field_next(&at, &bytes);
    if (is_field(field, bytes, "scrypt")) {
        if (user->has_password)
            return users_fault(r, line, "this user has a password already");
        user->has_password = true;
        status = read_scrypt(r, &at, &user->password);
    } else if (is_field(field, bytes, "sha256")) {
        if (user->has_token)
            return users_fault(r, line, "this user has a token already");
        user->has_token = true;
        status = read_hex(r, &at, user->token, sizeof user->token,
                          "a hash of 64 hexadecimal digits belongs here");
    } else {
        return users_fault(r, field != NULL ? field : line + strlen(line),
                           "after the name comes scrypt or sha256; 'ie bus passwd' writes these "
                           "lines");
    }
    if (status == IE_OK && at != NULL)
        return users_fault(r, at, "nothing more belongs on this line");
    return status;
}

static void
make_decoy(ie__users *users)
{
    ie__scrypt *decoy = &users->decoy;
    uint64_t    dearest = 0;

    *decoy = (ie__scrypt){.n = IE__SCRYPT_N, .r = IE__SCRYPT_R, .p = IE__SCRYPT_P};
    for (const known *at = users->all; at != NULL; at = at->next) {
        const ie__scrypt *s = &at->password;
        const uint64_t    cost = (uint64_t)s->n * s->r * s->p;

        if (at->has_password && cost > dearest) {
            dearest = cost;
            decoy->n = s->n;
            decoy->r = s->r;
            decoy->p = s->p;
        }
    }
    ie__random(decoy->salt, sizeof decoy->salt);
    ie__random(decoy->hash, sizeof decoy->hash);
}

ie_status
ie__users_parse(ie__users **out, const char *text, size_t bytes, const char *name, ie_error *err)
{
    ie__users *users = ie__calloc(1, sizeof *users);
    char      *copy = ie__alloc(bytes + 1);
    reader     r = {.users = users, .name = name, .err = err};
    ie_status  status = IE_OK;
    char      *line = copy;

    if (users == NULL || copy == NULL)
        status = ie_error_set(err, IE_ENOMEM, "no memory for users");
    if (copy != NULL && bytes != 0)
        memcpy(copy, text, bytes);
    while (status == IE_OK && line != NULL) {
        char *next = memchr(line, '\n', (size_t)(copy + bytes - line));
        char *end = next != NULL ? next : copy + bytes;

        *end = '\0';
        r.line++;
        r.line_start = line;
        if (strlen(line) != (size_t)(end - line))
            status = users_fault(&r, line + strlen(line), "a NUL byte");
        if (end > line && end[-1] == '\r')
            end[-1] = '\0';
        if (status == IE_OK && *line != '\0' && *line != '#')
            status = read_user(&r, line);
        line = next != NULL ? next + 1 : NULL;
    }
    if (copy != NULL)
        ie__secret_wipe(copy, bytes);
    ie__free(copy);
    if (status != IE_OK) {
        ie__users_free(users);
        return status;
    }
    make_decoy(users);
    *out = users;
    return IE_OK;
}

ie_status
ie__users_load(ie__users **out, const char *path, ie_error *err)
{
    ie_buffer buffer = {NULL, 0, 0};
    ie_status status =
        ie__secret_file(&buffer, "users_file", path, true, IE__USERS_FILE_BYTES_MAX, err);

    if (status == IE_OK) {
        status = ie__users_parse(out, buffer.data, buffer.size, path, err);
        ie__secret_wipe(buffer.data, buffer.size);
        ie_buffer_fini(&buffer);
    }
    return status;
}

void
ie__users_free(ie__users *users)
{
    if (users == NULL)
        return;
    while (users->all != NULL) {
        known *gone = users->all;

        users->all = gone->next;
        ie__secret_wipe(&gone->password, sizeof gone->password);
        ie__secret_wipe(gone->token, sizeof gone->token);
        ie__free(gone);
    }
    ie__free(users);
}

/* ---- checks ---- */

bool
ie__users_password(const ie__users *users, const char *user, ie__scrypt *out)
{
    const known *found = users_find(users, user);
    const bool   has_password = found != NULL && found->has_password;

    *out = has_password ? found->password : users->decoy;
    return has_password;
}

bool
ie__scrypt_matches(const ie__scrypt *stored, const void *password, size_t bytes)
{
    unsigned char  hash[IE__HASH_BYTES];
    const uint64_t memory = UINT64_C(128) * stored->n * stored->r +
                            UINT64_C(128) * stored->r * stored->p + (UINT64_C(1) << 20);
    const bool is_made =
        EVP_PBE_scrypt(password, bytes, stored->salt, sizeof stored->salt, stored->n, stored->r,
                       stored->p, memory, hash, sizeof hash) == 1;
    const bool matches = is_made && CRYPTO_memcmp(hash, stored->hash, sizeof hash) == 0;

    ie__secret_wipe(hash, sizeof hash);
    return matches;
}

const char *
ie__users_token(const ie__users *users, const void *token, size_t bytes)
{
    unsigned char hash[IE__HASH_BYTES];
    const char   *found = NULL;

    (void)SHA256(token, bytes, hash);
    for (const known *at = users->all; at != NULL; at = at->next)
        if (at->has_token && CRYPTO_memcmp(hash, at->token, sizeof hash) == 0)
            found = at->name;
    ie__secret_wipe(hash, sizeof hash);
    return found;
}

bool
ie__users_has(const ie__users *users, const char *user, bool by_token)
{
    const known *found = users_find(users, user);

    return found != NULL && (by_token ? found->has_token : found->has_password);
}
