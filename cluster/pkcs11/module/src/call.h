/* One call of the daemon, from the arguments of a PKCS #11 function to its results.
 * The functions in calls.gen.c are straight lines of these: the first failure is kept
 * in the call and makes what follows do nothing. */
#ifndef HSMBACKUP_CALL_H
#define HSMBACKUP_CALL_H

#include "conn.h"
#include "cryptoki.h"
#include "wire.h"

/* What the table knows of a call; the signatures announce the values on the wire. */
struct call_info {
	uint32_t id;
	const char *request, *response;
	bool session; /* its first argument is a session */
	bool retry;   /* may be asked again of a new connection when the old one is lost */
};

struct call {
	CK_RV rv;
	const struct call_info *info;
	struct conn *conn;
	bool outside; /* of what the application may use: it is about to begin, or has ended */
	int bound;    /* seconds until the connection is given up; as of conn_exchange */
	struct buffer out;
	struct answer answer;
	struct view in;

	uint64_t session; /* of its first argument, as the wire has it; 0: none */
	bool sizing;	  /* it asks how much room it needs */
	bool asked;	  /* and answered, with what went before it */
	unsigned epoch;	  /* of pair.h, when it was asked */
};

void call_begin(struct call *c, const struct call_info *info);
/* The same on a connection that the module does not use yet, or no more. */
void call_begin_on(struct call *c, const struct call_info *info, struct conn *conn);
void call_fail(struct call *c, CK_RV rv);
/* Sends the request and waits. */
void call_run(struct call *c);
/* The same at once, and nothing else. */
void call_ask(struct call *c);
/* Checks that the answer was read to its end, wipes both, and gives the result. */
CK_RV call_end(struct call *c);
/* The result of a function that the wire has no words for. */
CK_RV call_refused(void);
/* The daemon broke the protocol: CKR_DEVICE_ERROR, and the connection ends. */
void call_broken(struct call *c);

/* Arguments. */
void put_byte(struct call *c, CK_ULONG v);
void put_number(struct call *c, CK_ULONG v);
void put_session(struct call *c, CK_SESSION_HANDLE h);
void put_object(struct call *c, CK_OBJECT_HANDLE h);
void put_bytes(struct call *c, const void *p, CK_ULONG n);
void put_room(struct call *c, const void *p, const CK_ULONG *n);
void put_list_room(struct call *c, const void *p, const CK_ULONG *n);
void put_template(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n);
void put_template_room(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n);
void put_mechanism(struct call *c, const CK_MECHANISM *m);
/* A result has a place. */
void need(struct call *c, const void *p);
/* A reserved argument is null. */
void need_null(struct call *c, const void *p);

/* Results. */
void get_number(struct call *c, CK_ULONG *v);
void get_session(struct call *c, CK_SESSION_HANDLE *h);
void get_object(struct call *c, CK_OBJECT_HANDLE *h);
void get_bytes(struct call *c, void *p, CK_ULONG *n);
void get_list(struct call *c, CK_ULONG *p, CK_ULONG *n);
/* As many objects as were asked for at most. */
void get_objects(struct call *c, CK_OBJECT_HANDLE *p, CK_ULONG most, CK_ULONG *n);
void get_version(struct call *c, CK_VERSION *v);
void get_padded(struct call *c, void *p, size_t n);
void get_template(struct call *c, CK_ATTRIBUTE *t, CK_ULONG n);

/* A handle of this connection as the wire has it; false for one of another. */
bool handle_to_wire(const struct conn *conn, CK_ULONG handle, uint64_t *wire);

/* Generated: what an attribute is on the wire. */
enum attribute_class { CLASS_BYTES, CLASS_BOOL, CLASS_NUMBER, CLASS_ATTRIBUTES, CLASS_MECHANISMS };
enum attribute_class attribute_class(CK_ATTRIBUTE_TYPE type);

#endif
