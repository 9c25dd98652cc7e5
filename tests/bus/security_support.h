/* Files with modes, and a log that is kept to be searched. */
#ifndef IE_SECURITY_SUPPORT_H
#define IE_SECURITY_SUPPORT_H

#include <ie/base.h>

#include <sys/types.h>

/* In the test's folder. */
void write_file(const char *name, const char *text, mode_t mode);

/* Everything that was logged through it, up to 1 MiB. */
extern const ie_logger log_kept;
bool                   log_has(const char *part);

#endif
