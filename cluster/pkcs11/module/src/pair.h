/* A function that begins an operation and the one that does it travel together: when a
 * session has just done an operation and begins one like it, to the byte, the daemon is
 * told of the beginning with what follows, in one request (PROTOCOL.md, call 258). Whoever
 * signs a thousand times asks the daemon a thousand times, not two thousand.
 *
 * What an application sees is the same: a beginning that fails now, though it succeeded
 * a moment ago, fails where the operation is done, with its result. That can only be for
 * something another process has done: after a login, a logout, an object that was destroyed
 * or changed, or a session that ended, the daemon is asked at once. */
#ifndef HSMBACKUP_PAIR_H
#define HSMBACKUP_PAIR_H

#include <stdbool.h>

struct call;
struct pairs; /* of one connection */

/* NULL if there is no memory. */
struct pairs *pairs_new(void);
void pairs_free(struct pairs *p);

/* Before a call is sent: has a beginning wait, and then there is nothing to send; else has one
 * that waits told, with the call or before it. */
bool pair_waits(struct call *c);
/* When a call has ended. */
void pair_ended(struct call *c);

#endif
