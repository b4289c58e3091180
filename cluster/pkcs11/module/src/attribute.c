/* Templates: attributes on their way to the daemon, room for attributes, and the
 * attributes that come back. */
#include "call.h"

#include <string.h>

/* How deep templates stand in templates, as in p11-kit. */
#define MAX_DEPTH 8
/* The daemon takes no more in one template, and no more mechanisms in one attribute. */
#define MAX_ATTRIBUTES 1024

static void put_attributes(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n, int depth);

/* value_number reads a CK_ULONG, or an unsigned int, which some applications use. */
static bool value_number(const CK_ATTRIBUTE *a, CK_ULONG *v)
{
	unsigned int narrow;
	if (a->ulValueLen == sizeof *v) {
		memcpy(v, a->pValue, sizeof *v);
		return true;
	}
	if (a->ulValueLen != sizeof narrow)
		return false;
	memcpy(&narrow, a->pValue, sizeof narrow);
	*v = narrow;
	return true;
}

static void put_mechanisms(struct call *c, const CK_ATTRIBUTE *a)
{
	CK_ULONG n = a->ulValueLen / sizeof(CK_ULONG), v;
	if (a->ulValueLen % sizeof v != 0 || n > MAX_ATTRIBUTES) {
		call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
		return;
	}
	buffer_u32(&c->out, (uint32_t)(n * 8));
	buffer_u32(&c->out, (uint32_t)n);
	for (CK_ULONG i = 0; i < n; i++) {
		memcpy(&v, (const unsigned char *)a->pValue + i * sizeof v, sizeof v);
		put_number(c, v);
	}
}

/* put_value writes the length and the value in the form of the type's class. */
static void put_value(struct call *c, const CK_ATTRIBUTE *a, int depth)
{
	CK_ULONG v;
	switch (attribute_class(a->type)) {
	case CLASS_BOOL:
		if (a->ulValueLen != sizeof(CK_BBOOL)) {
			call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
			return;
		}
		buffer_u32(&c->out, 1);
		buffer_u8(&c->out, *(const CK_BBOOL *)a->pValue != 0);
		return;
	case CLASS_NUMBER:
		if (!value_number(a, &v)) {
			call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
			return;
		}
		buffer_u32(&c->out, 8);
		put_number(c, v);
		return;
	case CLASS_ATTRIBUTES:
		if (a->ulValueLen % sizeof(CK_ATTRIBUTE) != 0 || depth >= MAX_DEPTH) {
			call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
			return;
		}
		v = a->ulValueLen / sizeof(CK_ATTRIBUTE);
		buffer_u32(&c->out, (uint32_t)(v * 24));
		put_attributes(c, a->pValue, v, depth + 1);
		return;
	case CLASS_MECHANISMS:
		put_mechanisms(c, a);
		return;
	case CLASS_BYTES:
		break;
	}
	if (a->ulValueLen >= MAX_FRAME) {
		call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
		return;
	}
	buffer_u32(&c->out, (uint32_t)a->ulValueLen);
	buffer_bytes(&c->out, a->pValue, a->ulValueLen);
}

/* counted checks a template and writes the number of its attributes. */
static bool counted(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n)
{
	if ((t == NULL && n != 0) || n > MAX_ATTRIBUTES)
		call_fail(c, CKR_ARGUMENTS_BAD);
	if (c->rv == CKR_OK)
		buffer_u32(&c->out, (uint32_t)n);
	return c->rv == CKR_OK;
}

static void put_type(struct call *c, CK_ATTRIBUTE_TYPE type)
{
	if (type != (uint32_t)type)
		call_fail(c, CKR_ATTRIBUTE_TYPE_INVALID);
	buffer_u32(&c->out, (uint32_t)type);
}

static void put_attributes(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n, int depth)
{
	if (!counted(c, t, n))
		return;
	for (CK_ULONG i = 0; i < n && c->rv == CKR_OK; i++) {
		bool valid = t[i].ulValueLen != CK_UNAVAILABLE_INFORMATION;
		put_type(c, t[i].type);
		buffer_u8(&c->out, valid);
		if (valid && t[i].pValue == NULL && t[i].ulValueLen != 0)
			call_fail(c, CKR_ATTRIBUTE_VALUE_INVALID);
		else if (valid)
			put_value(c, &t[i], depth);
	}
}

void put_template(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n)
{
	put_attributes(c, t, n, 0);
}

/* wire_room is how much of the wire's lengths fits into the attribute's place. They
 * differ from the memory's where a CK_ULONG has 4 bytes. */
static uint32_t wire_room(const CK_ATTRIBUTE *a)
{
	CK_ULONG n = a->pValue == NULL || a->ulValueLen == CK_UNAVAILABLE_INFORMATION ? 0 : a->ulValueLen;
	switch (attribute_class(a->type)) {
	case CLASS_NUMBER:
	case CLASS_MECHANISMS:
		n = n / sizeof(CK_ULONG) * 8;
		break;
	case CLASS_ATTRIBUTES:
		n = n / sizeof(CK_ATTRIBUTE) * 24;
		break;
	case CLASS_BOOL:
	case CLASS_BYTES:
		break;
	}
	return n > 0x7ffffffe ? 0x7ffffffe : (uint32_t)n;
}

static void put_rooms(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n, int depth)
{
	if (!counted(c, t, n))
		return;
	for (CK_ULONG i = 0; i < n && c->rv == CKR_OK; i++) {
		uint32_t room = wire_room(&t[i]);
		bool nested = attribute_class(t[i].type) == CLASS_ATTRIBUTES && room > 0;
		if (nested && (depth >= MAX_DEPTH || conn_form(c->conn) < FORM_THIRD)) {
			call_fail(c, CKR_ATTRIBUTE_TYPE_INVALID);
			return;
		}
		put_type(c, t[i].type);
		buffer_u32(&c->out, room);
		if (nested)
			put_rooms(c, t[i].pValue, room / 24, depth + 1);
	}
}

void put_template_room(struct call *c, const CK_ATTRIBUTE *t, CK_ULONG n)
{
	put_rooms(c, t, n, 0);
}

/* What is read into: an attribute of the application, or nothing, when a value is
 * only stepped over. */
static bool wanted(const CK_ATTRIBUTE *a)
{
	return a != NULL && a->pValue != NULL;
}

/* settle writes the length that an attribute has in memory, and tells whether its
 * value fits and is wanted. Too small a place costs the attribute its length. */
static bool settle(CK_ATTRIBUTE *a, CK_ULONG length, bool *small)
{
	if (a == NULL)
		return false;
	if (a->pValue != NULL && a->ulValueLen < length) {
		a->ulValueLen = CK_UNAVAILABLE_INFORMATION;
		*small = true;
		return false;
	}
	a->ulValueLen = length;
	return a->pValue != NULL;
}

static void get_attributes(struct call *c, CK_ATTRIBUTE *t, CK_ULONG n, bool *small, int depth);

static void get_number_value(struct call *c, CK_ATTRIBUTE *a, bool *small)
{
	CK_ULONG v = 0;
	get_number(c, &v);
	if (settle(a, sizeof v, small))
		memcpy(a->pValue, &v, sizeof v);
}

static void get_mechanisms(struct call *c, CK_ATTRIBUTE *a, uint32_t length, bool *small)
{
	uint32_t n = view_u32(&c->in);
	if (n > c->in.length / 8) {
		call_broken(c);
		return;
	}
	bool store = settle(a, (wanted(a) ? n : length / 8) * sizeof(CK_ULONG), small);
	for (uint32_t i = 0; i < n && c->rv == CKR_OK; i++) {
		CK_ULONG v = 0;
		get_number(c, &v);
		if (store)
			memcpy((unsigned char *)a->pValue + i * sizeof v, &v, sizeof v);
	}
}

static void get_nested(struct call *c, CK_ATTRIBUTE *a, uint32_t length, bool *small, int depth)
{
	uint32_t n = view_u32(&c->in);
	if (depth >= MAX_DEPTH || n > c->in.length) {
		call_broken(c);
		return;
	}
	bool store = settle(a, (wanted(a) ? n : length / 24) * sizeof(CK_ATTRIBUTE), small);
	get_attributes(c, store ? a->pValue : NULL, n, small, depth + 1);
}

static void get_byte_value(struct call *c, CK_ATTRIBUTE *a, uint32_t length, bool *small)
{
	size_t n;
	const unsigned char *p = view_bytes(&c->in, &n);
	if (p == NULL || (wanted(a) && n != length)) {
		call_broken(c);
		return;
	}
	if (settle(a, length, small))
		memcpy(a->pValue, p, n);
}

static void get_value(struct call *c, CK_ATTRIBUTE_TYPE type, CK_ATTRIBUTE *a, bool *small, int depth)
{
	uint32_t length = view_u32(&c->in);
	CK_BBOOL flag;
	switch (attribute_class(type)) {
	case CLASS_BOOL:
		flag = view_u8(&c->in) != 0;
		if (settle(a, sizeof flag, small))
			memcpy(a->pValue, &flag, sizeof flag);
		return;
	case CLASS_NUMBER:
		get_number_value(c, a, small);
		return;
	case CLASS_ATTRIBUTES:
		get_nested(c, a, length, small, depth);
		return;
	case CLASS_MECHANISMS:
		get_mechanisms(c, a, length, small);
		return;
	case CLASS_BYTES:
		get_byte_value(c, a, length, small);
		return;
	}
}

/* get_attributes reads n attributes into t, or steps over them. Those of the outermost
 * template are those asked for; those inside an attribute are the daemon's choice. */
static void get_attributes(struct call *c, CK_ATTRIBUTE *t, CK_ULONG n, bool *small, int depth)
{
	for (CK_ULONG i = 0; i < n && c->rv == CKR_OK && !c->in.bad; i++) {
		CK_ATTRIBUTE *a = t == NULL ? NULL : &t[i];
		uint32_t type = view_u32(&c->in);
		if (a != NULL && depth == 0 && a->type != type) {
			call_broken(c);
			return;
		}
		if (a != NULL)
			a->type = type;
		if (view_u8(&c->in) != 0)
			get_value(c, type, a, small, depth);
		else if (a != NULL)
			a->ulValueLen = CK_UNAVAILABLE_INFORMATION;
	}
}

void get_template(struct call *c, CK_ATTRIBUTE *t, CK_ULONG n)
{
	bool small = false;
	if (c->rv != CKR_OK)
		return;
	if (view_u32(&c->in) != n) {
		call_broken(c);
		return;
	}
	get_attributes(c, t, n, &small, 0);
	uint64_t rv = view_u64(&c->in);
	if (c->rv != CKR_OK || c->in.bad)
		return; /* call_end sees to it */
	if (rv != CKR_OK && rv != CKR_ATTRIBUTE_SENSITIVE && rv != CKR_ATTRIBUTE_TYPE_INVALID && rv != CKR_BUFFER_TOO_SMALL)
		call_broken(c);
	if (rv == CKR_OK && small)
		rv = CKR_BUFFER_TOO_SMALL;
	call_fail(c, (CK_RV)rv);
}
