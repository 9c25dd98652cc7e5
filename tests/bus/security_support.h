/* Files with modes, and a log that is kept to be searched. */
#ifndef IE_SECURITY_SUPPORT_H
#define IE_SECURITY_SUPPORT_H

#include <ie/bus_server.h>

#include <sys/types.h>

/* In the test's folder. */
void write_file(const char *name, const char *text, mode_t mode);

/* A counter is shown at the end of a turn, so wait for it. False: it is another one to the end. */
bool counter_is(ie_bus_server *server, size_t offset, uint64_t value);
#define COUNTER_IS(server, field, value)                                                           \
    counter_is((server), offsetof(ie_bus_server_stats, field), (value))

/* Everything that was logged through it, up to 1 MiB. */
extern const ie_logger log_kept;
bool                   log_has(const char *part);

#endif
