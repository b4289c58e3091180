/* The state of the module: whether the application has initialised it, and its
 * connection. */
#ifndef HSMBACKUP_MODULE_H
#define HSMBACKUP_MODULE_H

#include "conn.h"
#include "cryptoki.h"

/* A reference to the connection. When it has failed and alive is asked for, a new one
 * is made, within RECONNECT seconds while a daemon restarts; otherwise the failed one
 * is given, on which every session is invalid. */
CK_RV module_connection(bool alive, struct conn **out);

/* Whether the application has initialised the module and not yet finalised it. */
bool module_initialized(void);

/* Where the daemon listens; the caller frees it. NULL if no address is valid. */
char *daemon_address(void);

/* Whether an IV of AES-GCM that is all zeros is to be made by the HSM. */
bool module_makes_iv(void);

/* What is configured for that; false if it is neither of the two. */
bool daemon_makes_iv(bool *makes);

/* How many seconds the daemon has for a call. 0 if what is configured is no bound. */
int daemon_bound(void);

#endif
