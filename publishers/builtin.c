/* The publishers that this build knows: the one list that a new transport joins. */
#include <ie/publisher.h>

#include <pthread.h>

#include "file_publisher.h"
#include "memory_publisher.h"
#include "registry.h"
#ifdef IE_HAVE_SOCKET_BUS
#include "socket_bus.h"
#endif

static const ie_publisher_ops *const TABLES[] = {
    &ie__publisher_memory,
    &ie__publisher_file,
#ifdef IE_HAVE_SOCKET_BUS
    &ie__publisher_socket,
    &ie__publisher_unix,
    &ie__publisher_sockets,
#endif
};

#define TABLE_COUNT (sizeof TABLES / sizeof TABLES[0])

/* Static memory, because "never NULL" must hold without any memory left. */
static ie_publishers       builtin;
static ie__publisher_entry entries[TABLE_COUNT];
static pthread_once_t      once = PTHREAD_ONCE_INIT;

static void
builtin_fill(void)
{
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        /* Our own tables; a test holds that every one of them gets in. */
        if (ie__publishers_import(&entries[builtin.count], &builtin, TABLES[i], NULL) == IE_OK) {
            builtin.entries[builtin.count] = &entries[builtin.count];
            builtin.count++;
        }
    }
}

const ie_publishers *
ie_publishers_builtin(void)
{
    (void)pthread_once(&once, builtin_fill);
    return &builtin;
}
