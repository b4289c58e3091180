#include "call.h"
#include "module.h"
#include "pair.h"

#include <string.h>

/* The daemon's handles are below 2^40; above stands the number of the connection, so
 * that a handle of one connection names nothing on the next. With a CK_ULONG of 32
 * bits it is 24 and 7. */
#define HANDLE_BITS (sizeof(CK_ULONG) >= 8 ? 40 : 24)
#define GENERATIONS (sizeof(CK_ULONG) >= 8 ? 1UL << 23 : 1UL << 7)

static CK_ULONG tag(const struct conn *conn)
{
	return (CK_ULONG)(conn_generation(conn) % GENERATIONS) << HANDLE_BITS;
}

bool handle_to_wire(const struct conn *conn, CK_ULONG handle, uint64_t *wire)
{
	CK_ULONG low = handle & ((1UL << HANDLE_BITS) - 1);
	*wire = low;
	return handle == 0 || handle == CK_UNAVAILABLE_INFORMATION || handle == (low | tag(conn));
}

void call_fail(struct call *c, CK_RV rv)
{
	if (c->rv == CKR_OK)
		c->rv = rv;
}

void call_broken(struct call *c)
{
	if (c->conn != NULL)
		conn_fail(c->conn);
	call_fail(c, CKR_DEVICE_ERROR);
}

static void begin_body(struct call *c)
{
	static const unsigned char header[BODY_AT];
	buffer_raw(&c->out, header, sizeof header);
	buffer_u32(&c->out, c->info->id);
	buffer_bytes(&c->out, c->info->request, strlen(c->info->request));
}

void call_begin_on(struct call *c, const struct call_info *info, struct conn *conn)
{
	memset(c, 0, sizeof *c);
	c->info = info;
	c->conn = conn_ref(conn);
	c->outside = true;
	begin_body(c);
}

void call_begin(struct call *c, const struct call_info *info)
{
	memset(c, 0, sizeof *c);
	c->info = info;
	c->rv = module_connection(!info->session, &c->conn);
	if (c->rv == CKR_OK)
		begin_body(c);
}

/* cut_off is the result of a call whose connection failed under it, and with it its
 * session. */
static CK_RV cut_off(const struct call *c)
{
	return c->outside || module_initialized() ? CKR_DEVICE_REMOVED : CKR_CRYPTOKI_NOT_INITIALIZED;
}

static enum outcome send_and_wait(struct call *c)
{
	return conn_exchange(c->conn, &c->out, &c->answer, c->bound);
}

/* exchange sends the request, once more over a new connection if the call may be
 * repeated and has not yet taken all its time. */
static void exchange(struct call *c)
{
	enum outcome outcome = send_and_wait(c);
	if (outcome == OUTCOME_ANSWER)
		return;
	if (!c->info->retry || outcome == OUTCOME_LATE) {
		call_fail(c, cut_off(c));
		return;
	}
	conn_unref(c->conn);
	c->conn = NULL;
	call_fail(c, module_connection(true, &c->conn));
	if (c->rv == CKR_OK && send_and_wait(c) != OUTCOME_ANSWER)
		call_fail(c, cut_off(c));
}

static bool signature_is(struct view *in, const char *want)
{
	size_t n;
	const unsigned char *p = view_bytes(in, &n);
	return p != NULL && n == strlen(want) && memcmp(p, want, n) == 0;
}

/* check reads what every answer starts with. */
static void check(struct call *c)
{
	uint32_t id = view_u32(&c->in);
	if (id == c->info->id) {
		if (!signature_is(&c->in, c->info->response))
			call_broken(c);
		return;
	}
	uint64_t rv = 0;
	if (id == 0 && signature_is(&c->in, "u"))
		rv = view_u64(&c->in);
	if (rv == CKR_OK || c->in.bad || c->in.length != 0 || rv != (CK_RV)rv)
		call_broken(c);
	call_fail(c, (CK_RV)rv);
}

/* ready says whether there is a whole request. */
static bool ready(struct call *c)
{
	if (c->rv == CKR_OK && c->out.failed)
		call_fail(c, c->out.length > MAX_FRAME / 2 ? CKR_DATA_LEN_RANGE : CKR_HOST_MEMORY);
	return c->rv == CKR_OK;
}

void call_run(struct call *c)
{
	if (!ready(c) || (conn_form(c->conn) == FORM_OWN && pair_waits(c)))
		return;
	if (!c->asked)
		call_ask(c);
}

void call_ask(struct call *c)
{
	if (!ready(c))
		return;
	exchange(c);
	if (c->rv != CKR_OK)
		return;
	c->in.p = c->answer.data;
	c->in.length = c->answer.length;
	check(c);
}

/* operation_of is the flag, as of C_SessionCancel, of the operation that a function goes on
 * with or ends; 0 if it does neither. */
static CK_FLAGS operation_of(uint32_t id)
{
	if (id >= 30 && id <= 32) /* C_Encrypt … */
		return 1 << 8;
	if (id >= 34 && id <= 36)
		return 1 << 9;
	if (id >= 38 && id <= 41 && id != 40) /* C_DigestKey may fail */
		return 1 << 10;
	if (id >= 43 && id <= 45)
		return 1 << 11;
	if (id == 47)
		return 1 << 12;
	if (id >= 49 && id <= 51)
		return 1 << 13;
	return id == 53 ? 1 << 14 : 0; /* C_VerifyRecover */
}

/* abandon ends the operation of a call whose arguments made no sense: the daemon, which has
 * not heard of it, would have it under way still. Any error ends an operation but too
 * little room (PKCS #11 v2.40, section 5.8 and on). */
static void abandon(const struct call *c)
{
	static const struct call_info info = {67, "uu", "", true, false};
	struct call cancel;
	call_begin_on(&cancel, &info, c->conn);
	buffer_u64(&cancel.out, cancel.session = c->session);
	put_number(&cancel, operation_of(c->info->id));
	call_run(&cancel);
	call_end(&cancel);
}

CK_RV call_end(struct call *c)
{
	if (c->rv == CKR_OK && (c->in.bad || c->in.length != 0))
		call_broken(c);
	if (c->rv == CKR_ARGUMENTS_BAD && c->session != 0 && operation_of(c->info->id) != 0 && conn_form(c->conn) == FORM_OWN)
		abandon(c);
	if (c->conn != NULL && conn_form(c->conn) == FORM_OWN)
		pair_ended(c);
	buffer_wipe(&c->out);
	answer_wipe(&c->answer);
	if (c->conn != NULL)
		conn_unref(c->conn);
	c->conn = NULL;
	return c->rv;
}

void put_byte(struct call *c, CK_ULONG v)
{
	buffer_u8(&c->out, (uint8_t)v);
}

void put_number(struct call *c, CK_ULONG v)
{
	buffer_u64(&c->out, v == CK_UNAVAILABLE_INFORMATION ? UINT64_MAX : v);
}

void put_session(struct call *c, CK_SESSION_HANDLE h)
{
	uint64_t wire;
	if (c->rv != CKR_OK)
		return;
	if (conn_dead(c->conn) || !handle_to_wire(c->conn, h, &wire))
		call_fail(c, CKR_SESSION_HANDLE_INVALID);
	else
		buffer_u64(&c->out, c->session = wire);
}

void put_object(struct call *c, CK_OBJECT_HANDLE h)
{
	uint64_t wire;
	if (c->rv != CKR_OK)
		return;
	if (!handle_to_wire(c->conn, h, &wire))
		call_fail(c, CKR_OBJECT_HANDLE_INVALID);
	else
		buffer_u64(&c->out, wire);
}

void put_bytes(struct call *c, const void *p, CK_ULONG n)
{
	if (p == NULL && n != 0) {
		call_fail(c, CKR_ARGUMENTS_BAD);
		return;
	}
	if (n >= MAX_FRAME) {
		call_fail(c, CKR_DATA_LEN_RANGE);
		return;
	}
	buffer_u8(&c->out, p != NULL);
	buffer_u32(&c->out, (uint32_t)n);
	if (p != NULL)
		buffer_raw(&c->out, p, n);
}

/* room_for is the u32 that announces a place: 0 for none, NO_BYTES for one of size 0. */
static void room_for(struct call *c, const void *p, const CK_ULONG *n)
{
	need(c, n);
	if (c->rv != CKR_OK)
		return;
	uint32_t room = *n > 0x7ffffffe ? 0x7ffffffe : (uint32_t)*n;
	if (p == NULL)
		room = 0;
	else if (room == 0 && conn_form(c->conn) != FORM_FIRST)
		room = NO_BYTES;
	buffer_u32(&c->out, room);
}

void put_room(struct call *c, const void *p, const CK_ULONG *n)
{
	c->sizing = p == NULL;
	room_for(c, p, n);
}

void put_list_room(struct call *c, const void *p, const CK_ULONG *n)
{
	need(c, n);
	if (c->rv == CKR_OK)
		buffer_u32(&c->out, p == NULL ? 0 : *n > 0x7ffffffe ? 0x7ffffffe : (uint32_t)*n);
}

void need(struct call *c, const void *p)
{
	if (p == NULL)
		call_fail(c, CKR_ARGUMENTS_BAD);
}

void need_null(struct call *c, const void *p)
{
	if (p != NULL)
		call_fail(c, CKR_ARGUMENTS_BAD);
}

/* number reads a u64, all ones being CK_UNAVAILABLE_INFORMATION. */
static CK_ULONG number(struct call *c)
{
	uint64_t v = view_u64(&c->in);
	if (v == UINT64_MAX)
		return CK_UNAVAILABLE_INFORMATION;
	if (v != (CK_ULONG)v)
		call_broken(c);
	return (CK_ULONG)v;
}

void get_number(struct call *c, CK_ULONG *v)
{
	if (c->rv == CKR_OK)
		*v = number(c);
}

static CK_ULONG handle(struct call *c)
{
	uint64_t v = view_u64(&c->in);
	if (v >> HANDLE_BITS != 0)
		call_broken(c);
	return (CK_ULONG)v == 0 ? 0 : (CK_ULONG)v | tag(c->conn);
}

void get_session(struct call *c, CK_SESSION_HANDLE *h)
{
	if (c->rv == CKR_OK)
		*h = handle(c);
}

void get_object(struct call *c, CK_OBJECT_HANDLE *h)
{
	if (c->rv == CKR_OK)
		*h = handle(c);
}

/* too_small reports how much there is, to who asked or had too little room. */
static void too_small(struct call *c, const void *p, CK_ULONG *n, CK_ULONG want)
{
	*n = want;
	if (p != NULL)
		call_fail(c, CKR_BUFFER_TOO_SMALL);
}

void get_bytes(struct call *c, void *p, CK_ULONG *n)
{
	if (c->rv != CKR_OK)
		return;
	if (view_u8(&c->in) == 0) {
		too_small(c, p, n, view_u32(&c->in));
		return;
	}
	size_t length;
	const unsigned char *from = view_bytes(&c->in, &length);
	if (from == NULL || (p != NULL && length > *n)) {
		call_broken(c);
		return;
	}
	*n = length;
	if (p != NULL)
		memcpy(p, from, length);
}

void get_list(struct call *c, CK_ULONG *p, CK_ULONG *n)
{
	if (c->rv != CKR_OK)
		return;
	bool values = view_u8(&c->in) != 0;
	uint32_t count = view_u32(&c->in);
	if (!values || p == NULL) {
		if (values && view_raw(&c->in, (size_t)count * 8) == NULL)
			call_broken(c);
		else
			too_small(c, p, n, count);
		return;
	}
	if (count > *n) {
		call_broken(c);
		return;
	}
	*n = count;
	for (uint32_t i = 0; i < count; i++)
		p[i] = number(c);
}

void get_objects(struct call *c, CK_OBJECT_HANDLE *p, CK_ULONG most, CK_ULONG *n)
{
	if (c->rv != CKR_OK)
		return;
	bool values = view_u8(&c->in) != 0;
	uint32_t count = view_u32(&c->in);
	if (!values || count > most) {
		call_broken(c);
		return;
	}
	*n = count;
	for (uint32_t i = 0; i < count && c->rv == CKR_OK; i++)
		p[i] = handle(c);
}

void get_version(struct call *c, CK_VERSION *v)
{
	if (c->rv != CKR_OK)
		return;
	v->major = view_u8(&c->in);
	v->minor = view_u8(&c->in);
}

void get_padded(struct call *c, void *p, size_t n)
{
	if (c->rv != CKR_OK)
		return;
	size_t length;
	const unsigned char *from = view_bytes(&c->in, &length);
	if (from == NULL || length != n)
		call_broken(c);
	else
		memcpy(p, from, n);
}

CK_RV call_refused(void)
{
	return module_initialized() ? CKR_FUNCTION_NOT_SUPPORTED : CKR_CRYPTOKI_NOT_INITIALIZED;
}
