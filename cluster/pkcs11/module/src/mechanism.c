/* Mechanisms and their parameters on the way to the daemon. PROTOCOL.md tells the
 * forms. A pointer is followed only where a layout says that one stands there. */
#include "mechanism.h"
#include "call.h"

#include <string.h>

#define NO_MECHANISM 0xffffffffU
/* More data items than any use of an SP 800-108 function needs. */
#define MAX_ITEMS 64

enum { PARAMETER_ABSENT, PARAMETER_FIELDS, PARAMETER_RAW };

static const struct mechanism *lookup(CK_MECHANISM_TYPE type)
{
	size_t low = 0, high = mechanisms_count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (mechanisms[middle].type < type)
			low = middle + 1;
		else
			high = middle;
	}
	return low < mechanisms_count && mechanisms[low].type == type ? &mechanisms[low] : NULL;
}

static CK_ULONG ulong_at(const unsigned char *p)
{
	CK_ULONG v;
	memcpy(&v, p, sizeof v);
	return v;
}

static const unsigned char *pointer_at(const unsigned char *p)
{
	const unsigned char *v;
	memcpy(&v, p, sizeof v);
	return v;
}

/* put_pointed writes bytes that a structure points at. */
static void put_pointed(struct call *c, const unsigned char *p, CK_ULONG n)
{
	if ((p == NULL && n != 0) || n >= MAX_FRAME)
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
	else
		buffer_bytes(&c->out, p, n);
}

/* An item of an SP 800-108 function: numbers where the standard has a structure. */
static void put_item(struct call *c, const CK_PRF_DATA_PARAM *item)
{
	enum { ITERATION = 1, COUNTER = 2, LENGTH = 3 };
	CK_SP800_108_COUNTER_FORMAT counter;
	CK_SP800_108_DKM_LENGTH_FORMAT length;
	put_number(c, item->type);
	if ((item->type == ITERATION || item->type == COUNTER) && item->pValue != NULL && item->ulValueLen == sizeof counter) {
		memcpy(&counter, item->pValue, sizeof counter);
		buffer_u32(&c->out, 16);
		buffer_u64(&c->out, counter.bLittleEndian != 0);
		put_number(c, counter.ulWidthInBits);
	} else if (item->type == LENGTH && item->pValue != NULL && item->ulValueLen == sizeof length) {
		memcpy(&length, item->pValue, sizeof length);
		buffer_u32(&c->out, 24);
		put_number(c, length.dkmLengthMethod);
		buffer_u64(&c->out, length.bLittleEndian != 0);
		put_number(c, length.ulWidthInBits);
	} else if (item->type <= LENGTH && item->ulValueLen != 0) {
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
	} else {
		put_pointed(c, item->pValue, item->ulValueLen);
	}
}

static void put_items(struct call *c, const unsigned char *items, CK_ULONG n)
{
	CK_PRF_DATA_PARAM item;
	if ((items == NULL && n != 0) || n > MAX_ITEMS) {
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
		return;
	}
	put_number(c, n);
	for (CK_ULONG i = 0; i < n && c->rv == CKR_OK; i++) {
		memcpy(&item, items + i * sizeof item, sizeof item);
		put_item(c, &item);
	}
}

static void put_fields(struct call *c, const struct layout *l, const unsigned char *p);

static void put_field(struct call *c, const struct field *f, const unsigned char *p)
{
	switch (f->kind) {
	case FIELD_NUMBER:
		put_number(c, ulong_at(p + f->at));
		break;
	case FIELD_FLAG:
		buffer_u64(&c->out, p[f->at] != 0);
		break;
	case FIELD_HANDLE:
		put_object(c, ulong_at(p + f->at));
		break;
	case FIELD_BYTES:
		put_pointed(c, pointer_at(p + f->at), ulong_at(p + f->other));
		break;
	case FIELD_INSIDE:
		buffer_bytes(&c->out, p + f->at, f->other);
		break;
	case FIELD_BITS:
		put_number(c, ulong_at(p + f->at) * 8);
		break;
	case FIELD_POINTER:
		put_fields(c, f->inner, pointer_at(p + f->at));
		break;
	case FIELD_ITEMS:
		put_items(c, pointer_at(p + f->other), ulong_at(p + f->at));
		break;
	case FIELD_ZERO:
		if (ulong_at(p + f->at) != 0)
			call_fail(c, CKR_MECHANISM_PARAM_INVALID);
		break;
	}
}

static void put_fields(struct call *c, const struct layout *l, const unsigned char *p)
{
	if (p == NULL)
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
	for (size_t i = 0; i < l->count && c->rv == CKR_OK; i++)
		put_field(c, &l->fields[i], p);
}

/* put_structure finds the layout that has the parameter's size. */
static void put_structure(struct call *c, const struct layout *l, const CK_MECHANISM *m)
{
	while (l != NULL && l->size != m->ulParameterLen)
		l = l->alternative;
	if (l == NULL)
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
	else
		put_fields(c, l, m->pParameter);
}

static void put_parameter(struct call *c, const struct mechanism *known, const CK_MECHANISM *m)
{
	switch (known->parameter) {
	case PARAMETER_NONE: /* the caller writes no parameter, or raw bytes */
	case PARAMETER_BYTES:
		put_pointed(c, m->pParameter, m->ulParameterLen);
		return;
	case PARAMETER_NUMBER:
	case PARAMETER_HANDLE:
		if (m->ulParameterLen != sizeof(CK_ULONG))
			call_fail(c, CKR_MECHANISM_PARAM_INVALID);
		else if (known->parameter == PARAMETER_NUMBER)
			put_number(c, ulong_at(m->pParameter));
		else
			put_object(c, ulong_at(m->pParameter));
		return;
	case PARAMETER_STRUCTURE:
		put_structure(c, known->layout, m);
		return;
	}
}

static void put_own(struct call *c, const struct mechanism *known, const CK_MECHANISM *m)
{
	if (m->ulParameterLen == 0) {
		buffer_u8(&c->out, PARAMETER_ABSENT);
	} else if (known == NULL || known->parameter == PARAMETER_NONE) {
		buffer_u8(&c->out, PARAMETER_RAW);
		put_pointed(c, m->pParameter, m->ulParameterLen);
	} else {
		buffer_u8(&c->out, PARAMETER_FIELDS);
		put_parameter(c, known, m);
	}
}

/* put_stock writes what a server of p11-kit reads. It has no words for more than it
 * knows, and none in its older forms for a parameter that is not there. */
static void put_stock(struct call *c, const struct mechanism *known, const CK_MECHANISM *m)
{
	enum form form = conn_form(c->conn);
	if (known == NULL || known->known == KNOWN_NEVER || (form == FORM_FIRST && known->known != KNOWN_FIRST)) {
		call_fail(c, CKR_MECHANISM_INVALID);
		return;
	}
	bool third = form == FORM_THIRD;
	if (known->parameter == PARAMETER_NONE) {
		if (m->ulParameterLen != 0)
			call_fail(c, CKR_MECHANISM_PARAM_INVALID);
		else if (!third)
			buffer_u32(&c->out, NO_BYTES);
	} else if (m->ulParameterLen == 0) {
		if (third)
			buffer_u8(&c->out, PARAMETER_ABSENT);
		else
			call_fail(c, CKR_MECHANISM_PARAM_INVALID);
	} else {
		if (third)
			buffer_u8(&c->out, PARAMETER_FIELDS);
		put_parameter(c, known, m);
	}
}

void put_mechanism(struct call *c, const CK_MECHANISM *m)
{
	if (c->rv != CKR_OK)
		return;
	if (m == NULL) {
		buffer_u32(&c->out, NO_MECHANISM);
		return;
	}
	if (m->mechanism >= NO_MECHANISM) {
		call_fail(c, CKR_MECHANISM_INVALID);
		return;
	}
	if (m->pParameter == NULL && m->ulParameterLen != 0) {
		call_fail(c, CKR_MECHANISM_PARAM_INVALID);
		return;
	}
	buffer_u32(&c->out, (uint32_t)m->mechanism);
	if (conn_form(c->conn) == FORM_OWN)
		put_own(c, lookup(m->mechanism), m);
	else
		put_stock(c, lookup(m->mechanism), m);
}
