/* One connection to the daemon, shared by all threads of the process. It stands for
 * one application there: its sessions live as long as it.
 *
 * Threads have requests under way at the same time. Each frame is written whole, and
 * of the threads that wait for an answer one reads, for all of them.
 *
 * A connection fails once and for ever: nothing is sent twice here. */
#ifndef HSMBACKUP_CONN_H
#define HSMBACKUP_CONN_H

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

/* What the peer speaks, as it answered the first byte. PROTOCOL.md has the table. */
enum form {
	FORM_FIRST,  /* p11-kit before 0.25 */
	FORM_SECOND, /* 0.25.0 to 0.25.5 */
	FORM_THIRD,  /* from 0.25.6 on */
	FORM_OWN     /* the daemon of hsmbackup */
};

/* The byte this module offers. */
#define OWN_VERSION 0x48

/* What stands before the body of a request: header, and options. */
#define OPTIONS "hsmbackup"
#define HEADER_LENGTH 12
#define BODY_AT (HEADER_LENGTH + sizeof OPTIONS - 1)

struct conn;
struct pairs;

/* Connects, and agrees on the form. NULL, with errno, if nobody answers. The
 * caller has the one reference. bound is how many seconds a call may take. */
struct conn *conn_open(const char *path, uint32_t generation, int bound);
struct conn *conn_ref(struct conn *c);
void conn_unref(struct conn *c);

enum form conn_form(const struct conn *c);
uint32_t conn_generation(const struct conn *c);
int conn_bound(const struct conn *c);
/* What is known of its sessions (pair.h). */
struct pairs *conn_pairs(const struct conn *c);
/* The connection has failed: no call on it will succeed. */
bool conn_dead(struct conn *c);
/* Ends the connection for all who use it. */
void conn_fail(struct conn *c);

struct answer {
	unsigned char *data;
	size_t length;
};

enum outcome {
	OUTCOME_ANSWER,
	OUTCOME_LOST, /* the connection failed */
	OUTCOME_LATE  /* there was no answer within the bound, so the connection was given up */
};

/* Sends the request, whose body starts at BODY_AT, and waits for the answer's body,
 * which the caller frees with answer_wipe. bound is in seconds; 0 is the connection's
 * own, NO_BOUND waits for the answer for as long as it takes. Without an answer the
 * daemon may or may not have done what was asked. */
#define NO_BOUND (-1)
enum outcome conn_exchange(struct conn *c, struct buffer *request, struct answer *answer, int bound);
void answer_wipe(struct answer *a);

/* In the child of a fork: closes the child's copy of the socket, which leaves the
 * parent's alone. The rest is left where it is, as its locks may be held. */
void conn_abandon(struct conn *c);

#endif
