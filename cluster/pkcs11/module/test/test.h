/* What the modes of the test program share. */
#ifndef TEST_H
#define TEST_H

#include "cryptoki.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the program was started with. */
struct setting {
	const char *module, *pin;
	CK_FUNCTION_LIST *f;
	CK_SLOT_ID slot;
	CK_SESSION_HANDLE session; /* read-write, logged in */
};

/* want ends the program unless a call gave what it had to. */
#define want(expected, call) want_at(__FILE__, __LINE__, #call, (expected), (call))
#define ok(call) want(CKR_OK, call)
#define is(condition) is_at(__FILE__, __LINE__, #condition, (condition))

void want_at(const char *file, int line, const char *call, CK_RV expected, CK_RV got);
void is_at(const char *file, int line, const char *condition, int holds);

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Attributes in short. */
extern CK_BBOOL yes, no;
#define ATTR(type, value) {(type), (void *)&(value), sizeof(value)}

CK_SESSION_HANDLE open_session(const struct setting *s);
void log_in(struct setting *s);

CK_OBJECT_HANDLE make_aes(const struct setting *s, CK_SESSION_HANDLE session);
CK_OBJECT_HANDLE make_generic(const struct setting *s, CK_SESSION_HANDLE session);
void make_ec(const struct setting *s, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *public, CK_OBJECT_HANDLE *private);
void make_rsa(const struct setting *s, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *public, CK_OBJECT_HANDLE *private);

/* The modes. */
void mode_general(struct setting *s);   /* what needs no key */
void mode_keys(struct setting *s);      /* keys and operations that the stock client passes too */
void mode_own(struct setting *s);       /* what it does not pass */
void mode_pairs(struct setting *s);     /* operations like the last, and what may come between */
void mode_threads(struct setting *s);   /* 32 threads on one connection */
void mode_fork(struct setting *s);      /* a child, while the parent works */
void mode_restart(struct setting *s);   /* a daemon restarted under an application */
void mode_stopped(struct setting *s);   /* one that hangs, and goes on */
void mode_address(struct setting *s);   /* whether it has more rights than its user, and a connection */
void mode_wait(struct setting *s);      /* logs in, says "ready", and waits to be killed */
void mode_hostile(struct setting *s);   /* calls everything, and expects nothing */
void mode_encodings(struct setting *s); /* calls with known arguments, for a server that looks */

#endif
