/* Logins that are being checked: slowed down, and the slow hashes on threads of their own. */
#ifndef IE_LOGIN_H
#define IE_LOGIN_H

#include "auth.h"

#define IE__LOGIN_CHECKS_MAX 2 /* slow hashes at a time: 16 MiB and a core each */

typedef struct ie__logins ie__logins;

ie__logins *ie__logins_new(ie_bus_server *server); /* NULL: out of memory */
void        ie__logins_close(ie__logins *logins);
void        ie__logins_free(ie__logins *logins);

/* Check what a hello said; copied. The connection is welcomed or doomed, now or later. */
void ie__login_begin(ie__logins *logins, ie__conn *conn, const ie__credentials *credentials);
/* The connection goes away; its check, if it runs, ends for nothing. */
void ie__login_forget(ie__conn *conn);

#endif
