/* The tables of tables.gen.c: which parameter a mechanism has. */
#ifndef HSMBACKUP_MECHANISM_H
#define HSMBACKUP_MECHANISM_H

#include "cryptoki.h"

#include <stdint.h>

enum field_kind {
	FIELD_NUMBER,
	FIELD_FLAG,    /* CK_BBOOL, sent as a number */
	FIELD_HANDLE,  /* of an object */
	FIELD_BYTES,   /* a pointer at `at`, the length at `other` */
	FIELD_INSIDE,  /* `other` bytes inside the structure */
	FIELD_BITS,    /* eight times a number */
	FIELD_POINTER, /* to a structure of `inner` */
	FIELD_ITEMS,   /* the count at `at`, a pointer to CK_PRF_DATA_PARAM at `other` */
	FIELD_ZERO     /* a number that must be 0; not sent */
};

struct layout;

struct field {
	enum field_kind kind;
	size_t at, other;
	const struct layout *inner;
};

struct layout {
	size_t size;
	const struct field *fields;
	size_t count;
	const struct layout *alternative; /* the same parameter with another size */
};

enum parameter { PARAMETER_NONE, PARAMETER_BYTES, PARAMETER_NUMBER, PARAMETER_HANDLE, PARAMETER_STRUCTURE };

/* What p11-kit's own peers know of a mechanism. */
enum known { KNOWN_FIRST, KNOWN_SECOND, KNOWN_NEVER };

struct mechanism {
	CK_MECHANISM_TYPE type;
	enum parameter parameter;
	enum known known;
	const struct layout *layout;
};

/* Sorted by type. */
extern const struct mechanism mechanisms[];
extern const size_t mechanisms_count;

#endif
