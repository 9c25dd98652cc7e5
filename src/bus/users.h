/*
 * The users_file: who is known, by a slow hash of a password or a fast one of a random token. One
 * line each: "NAME:scrypt:N:R:P:SALT:HASH" or "NAME:sha256:HASH", numbers decimal, bytes in hex;
 * lines that begin with # are comments.
 */
#ifndef IE_USERS_H
#define IE_USERS_H

#include <ie/bus_server.h>

#define IE__USERS_FILE_BYTES_MAX (16u << 20)
#define IE__USERS_MAX            50000
#define IE__SALT_BYTES           16
#define IE__HASH_BYTES           32
/* What a new line gets: 16 MiB and some 0.2 s of one core per check. */
#define IE__SCRYPT_N 16384u
#define IE__SCRYPT_R 8u
#define IE__SCRYPT_P 5u
/* What a line may ask for at most. */
#define IE__SCRYPT_MEMORY_MAX (UINT64_C(256) << 20)

typedef struct ie__scrypt {
    uint32_t      n;
    uint32_t      r;
    uint32_t      p;
    unsigned char salt[IE__SALT_BYTES];
    unsigned char hash[IE__HASH_BYTES];
} ie__scrypt;

typedef struct ie__users ie__users; /* never changes once it is read */

/* IE_EINVAL: "NAME:LINE:COLUMN: what is wrong". Hashes never appear in a message. */
ie_status ie__users_parse(ie__users **out, const char *text, size_t bytes, const char *name,
                          ie_error *err);
ie_status ie__users_load(ie__users **out, const char *path, ie_error *err);
void      ie__users_free(ie__users *users); /* NULL is accepted */

/* What to check a password of this user against. Someone unknown gets what costs the same and can
 * never be right: false. */
bool ie__users_password(const ie__users *users, const char *user, ie__scrypt *out);
/* Slow, on purpose; any thread. False also without memory. */
bool ie__scrypt_matches(const ie__scrypt *stored, const void *password, size_t bytes);
/* Whose token is it? NULL: nobody's. Borrowed from users. */
const char *ie__users_token(const ie__users *users, const void *token, size_t bytes);
/* Is there still a line of this kind? */
bool ie__users_has(const ie__users *users, const char *user, bool by_token);

/* NULL: fit for a user's name in the file. Else why not. */
const char *ie__user_name_fault(const char *name);

#endif
