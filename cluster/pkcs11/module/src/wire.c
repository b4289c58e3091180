#include "wire.h"

#include <stdlib.h>
#include <string.h>

uint32_t decode_u32(const unsigned char *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

void encode_u32(unsigned char *p, uint32_t v)
{
	p[0] = (unsigned char)(v >> 24);
	p[1] = (unsigned char)(v >> 16);
	p[2] = (unsigned char)(v >> 8);
	p[3] = (unsigned char)v;
}

/* grow moves the bytes to a larger place. It does not use realloc, which would leave
 * a copy of them behind. */
static bool grow(struct buffer *b, size_t need)
{
	size_t capacity = b->capacity == 0 ? 512 : b->capacity;
	while (capacity < need)
		capacity *= 2;
	unsigned char *data = malloc(capacity);
	if (data == NULL)
		return false;
	if (b->length > 0)
		memcpy(data, b->data, b->length);
	if (b->data != NULL) {
		explicit_bzero(b->data, b->length);
		free(b->data);
	}
	b->data = data;
	b->capacity = capacity;
	return true;
}

/* room makes room for n bytes at the end and counts them. */
static unsigned char *room(struct buffer *b, size_t n)
{
	if (b->failed || n > MAX_FRAME - b->length ||
	    (b->capacity - b->length < n && !grow(b, b->length + n))) {
		b->failed = true;
		return NULL;
	}
	unsigned char *p = b->data + b->length;
	b->length += n;
	return p;
}

void buffer_raw(struct buffer *b, const void *p, size_t n)
{
	if (n == 0)
		return;
	unsigned char *to = room(b, n);
	if (to != NULL)
		memcpy(to, p, n);
}

void buffer_u8(struct buffer *b, uint8_t v)
{
	buffer_raw(b, &v, 1);
}

void buffer_u32(struct buffer *b, uint32_t v)
{
	unsigned char *to = room(b, 4);
	if (to != NULL)
		encode_u32(to, v);
}

void buffer_u64(struct buffer *b, uint64_t v)
{
	buffer_u32(b, (uint32_t)(v >> 32));
	buffer_u32(b, (uint32_t)v);
}

void buffer_bytes(struct buffer *b, const void *p, size_t n)
{
	if (n >= MAX_FRAME) {
		b->failed = true;
		return;
	}
	buffer_u32(b, p == NULL ? NO_BYTES : (uint32_t)n);
	if (p != NULL)
		buffer_raw(b, p, n);
}

void buffer_set_u32(struct buffer *b, size_t at, uint32_t v)
{
	if (!b->failed)
		encode_u32(b->data + at, v);
}

void buffer_wipe(struct buffer *b)
{
	if (b->data != NULL) {
		explicit_bzero(b->data, b->length);
		free(b->data);
	}
	memset(b, 0, sizeof *b);
}

const unsigned char *view_raw(struct view *v, size_t n)
{
	if (v->bad || n > v->length) {
		v->bad = true;
		return NULL;
	}
	const unsigned char *p = v->p;
	v->p += n;
	v->length -= n;
	return p;
}

uint8_t view_u8(struct view *v)
{
	const unsigned char *p = view_raw(v, 1);
	return p == NULL ? 0 : p[0];
}

uint32_t view_u32(struct view *v)
{
	const unsigned char *p = view_raw(v, 4);
	return p == NULL ? 0 : decode_u32(p);
}

uint64_t view_u64(struct view *v)
{
	uint64_t high = view_u32(v);
	return high << 32 | view_u32(v);
}

const unsigned char *view_bytes(struct view *v, size_t *n)
{
	uint32_t length = view_u32(v);
	*n = length == NO_BYTES ? 0 : length;
	const unsigned char *p = view_raw(v, *n);
	if (p == NULL)
		*n = 0;
	return p;
}
