#include "pair.h"

#include "call.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Sessions that are remembered, and how long a beginning may be. */
#define SLOTS 64
#define KEPT 160

/* What is longer takes its time whatever goes before it. */
#define LARGE (1 << 20)

#define CALL_PAIR 258

enum state {
	NOTHING, /* is known of the session */
	BEGUN,	 /* an operation, with the body that is kept */
	ENDED,	 /* and it was done */
	WAITS	 /* another like it begins, and the daemon does not know yet */
};

struct slot {
	uint64_t session; /* 0: free */
	uint32_t id;	  /* of the function that begins */
	enum state state;
	unsigned epoch;
	size_t length;
	unsigned char body[KEPT];
};

struct pairs {
	pthread_mutex_t lock;
	bool refused;	/* the daemon knows no pairs */
	unsigned epoch; /* grows whenever a beginning may fail that did not before */
	struct slot slots[SLOTS];
};

struct pairs *pairs_new(void)
{
	struct pairs *p = calloc(1, sizeof *p);
	if (p != NULL)
		pthread_mutex_init(&p->lock, NULL);
	return p;
}

void pairs_free(struct pairs *p)
{
	if (p == NULL)
		return;
	pthread_mutex_destroy(&p->lock);
	explicit_bzero(p, sizeof *p);
	free(p);
}

/* begins says whether a function begins an operation that one other does: the next by
 * number. */
static bool begins(uint32_t id)
{
	switch (id) {
	case 29: /* C_EncryptInit */
	case 33: /* C_DecryptInit */
	case 37: /* C_DigestInit */
	case 42: /* C_SignInit */
	case 48: /* C_VerifyInit */
		return true;
	}
	return false;
}

/* unsettles says whether beginnings may fail after it that did not before. */
static bool unsettles(uint32_t id)
{
	switch (id) {
	case 11: /* C_CloseSession */
	case 12: /* C_CloseAllSessions */
	case 14: /* C_InitPIN */
	case 15: /* C_SetPIN */
	case 18: /* C_Login */
	case 19: /* C_Logout */
	case 22: /* C_DestroyObject */
	case 25: /* C_SetAttributeValue */
	case 66: /* C_LoginUser */
	case 67: /* C_SessionCancel */
		return true;
	}
	return false;
}

/* slot_of is the place of a session, or NULL: others share it, and one of them waits. With
 * lock held. */
static struct slot *slot_of(struct pairs *p, uint64_t session)
{
	struct slot *s = &p->slots[session % SLOTS];
	if (s->session == session)
		return s;
	if (s->state == WAITS)
		return NULL;
	memset(s, 0, sizeof *s);
	s->session = session;
	return s;
}

static bool same(const struct slot *s, const struct call *c)
{
	size_t n = c->out.length - BODY_AT;
	return s->id == c->info->id && s->length == n && memcmp(s->body, c->out.data + BODY_AT, n) == 0;
}

static void new_request(struct buffer *b)
{
	static const unsigned char header[BODY_AT];
	buffer_raw(b, header, sizeof header);
}

/* ask sends one request and wipes it. */
static void ask(struct call *c, struct buffer *request)
{
	struct buffer own = c->out;
	c->out = *request;
	call_ask(c);
	buffer_wipe(&c->out);
	c->out = own;
}

/* begin_alone tells the daemon of a beginning that waited. */
static CK_RV begin_alone(struct call *c, const struct slot *s)
{
	const struct call_info info = {s->id, "", "", true, false};
	struct call first = {.info = &info, .conn = c->conn};
	struct buffer request = {NULL, 0, 0, false};
	new_request(&request);
	buffer_raw(&request, s->body, s->length);
	ask(&first, &request);
	answer_wipe(&first.answer);
	return first.rv;
}

/* ask_both sends a beginning that waited with the call that does what begins. A daemon
 * that does not know how is asked for one after the other from then on. */
static void ask_both(struct call *c, struct pairs *p, const struct slot *s)
{
	struct buffer request = {NULL, 0, 0, false};
	new_request(&request);
	buffer_u32(&request, CALL_PAIR);
	buffer_bytes(&request, "uayay", 5);
	buffer_u64(&request, c->session);
	buffer_u8(&request, 1);
	buffer_bytes(&request, s->body, s->length);
	buffer_u8(&request, 1);
	buffer_bytes(&request, c->out.data + BODY_AT, c->out.length - BODY_AT);
	ask(c, &request);
	c->asked = true;
	if (c->rv != CKR_FUNCTION_NOT_SUPPORTED)
		return;
	pthread_mutex_lock(&p->lock);
	p->refused = true;
	pthread_mutex_unlock(&p->lock);
	answer_wipe(&c->answer);
	c->rv = begin_alone(c, s);
	c->asked = false;
}

/* of_operation says whether a function goes on with the operation that another has begun:
 * at once, in parts, or to its end. */
static bool of_operation(uint32_t begin, uint32_t id)
{
	return id > begin && id <= begin + (begin == 37 ? 4 : 3); /* of C_DigestInit also C_DigestKey */
}

/* begin_before tells of a beginning before a call that it does not travel with. If it
 * fails, so does what goes on with the operation, for the same reason. */
static void begin_before(struct call *c, const struct slot *s)
{
	CK_RV rv = begin_alone(c, s);
	if (of_operation(s->id, c->info->id))
		call_fail(c, rv);
}

bool pair_waits(struct call *c)
{
	struct pairs *p = conn_pairs(c->conn);
	struct slot waiting = {.state = NOTHING};
	bool waits = false;
	pthread_mutex_lock(&p->lock);
	if (unsettles(c->info->id))
		p->epoch++;
	c->epoch = p->epoch;
	struct slot *s = c->session == 0 ? NULL : slot_of(p, c->session);
	if (s != NULL && s->state == WAITS)
		waiting = *s;
	if (s != NULL && s->state == ENDED && s->epoch == p->epoch && !p->refused && same(s, c)) {
		s->state = WAITS;
		waits = true;
	} else if (s != NULL && c->info->id == s->id + 1 && (s->state == BEGUN || s->state == WAITS)) {
		s->state = BEGUN;
	} else if (s != NULL) {
		s->state = NOTHING;
	}
	pthread_mutex_unlock(&p->lock);
	if (waiting.state != WAITS)
		return waits;
	if (c->info->id == waiting.id + 1 && c->out.length < LARGE)
		ask_both(c, p, &waiting);
	else
		begin_before(c, &waiting);
	return false;
}

void pair_ended(struct call *c)
{
	struct pairs *p = conn_pairs(c->conn);
	size_t n = c->out.length > BODY_AT ? c->out.length - BODY_AT : 0;
	pthread_mutex_lock(&p->lock);
	if (unsettles(c->info->id)) /* again: what began meanwhile may have been before it */
		p->epoch++;
	if (c->session == 0) {
		pthread_mutex_unlock(&p->lock);
		return;
	}
	struct slot *s = slot_of(p, c->session);
	if (s == NULL || s->state == WAITS) {
		pthread_mutex_unlock(&p->lock);
		return;
	}
	if (begins(c->info->id) && c->rv == CKR_OK && n <= KEPT) {
		s->id = c->info->id;
		s->state = BEGUN;
		s->epoch = c->epoch;
		s->length = n;
		memcpy(s->body, c->out.data + BODY_AT, n);
	} else if (s->state == BEGUN && c->info->id == s->id + 1 && c->rv == CKR_OK && !c->sizing) {
		s->state = ENDED;
	} else {
		s->state = NOTHING;
	}
	pthread_mutex_unlock(&p->lock);
}
