/* Files that hold secrets: read only when nobody else can, and forgotten thoroughly. */
#ifndef IE_NET_SECRET_H
#define IE_NET_SECRET_H

#include <ie/base.h>

#include <stdio.h>

#define IE__SECRET_BYTES_MAX 512 /* of a password or token */

/*
 * Open a regular file for reading. is_private: one that its group or others can read, or that
 * belongs to somebody else (root excepted), is refused with IE_EDENIED and what to do about it;
 * otherwise only one that others can write. what: "users_file", for the message.
 */
ie_status ie__secret_open(int *fd, const char *what, const char *path, bool is_private,
                          ie_error *err);

/* The whole file, at most bytes_max; release with ie__secret_fini(). Terminated. */
ie_status ie__secret_file(ie_buffer *out, const char *what, const char *path, bool is_private,
                          size_t bytes_max, ie_error *err);

/* The first line of a private file, 1 to IE__SECRET_BYTES_MAX bytes, without its line feed. */
ie_status ie__secret_line(ie_buffer *out, const char *what, const char *path, ie_error *err);

/* Overwrite, so that no optimiser leaves it out. */
void ie__secret_wipe(void *bytes, size_t size);
/* Overwrite and release. */
void ie__secret_fini(ie_buffer *buffer);

#endif
