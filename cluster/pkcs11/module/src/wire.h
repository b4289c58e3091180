/* Bytes of the protocol: a buffer that grows while a request is written, and a view
 * that shrinks while an answer is read. Both remember their first failure, so that
 * callers check once, at the end. Integers are big-endian. */
#ifndef HSMBACKUP_WIRE_H
#define HSMBACKUP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No frame is longer, in either direction. The daemon's limit is the same. */
#define MAX_FRAME (64U << 20)

/* The length that stands for a null pointer. */
#define NO_BYTES 0xffffffffU

struct buffer {
	unsigned char *data;
	size_t length, capacity;
	bool failed; /* out of memory, or longer than MAX_FRAME */
};

void buffer_u8(struct buffer *b, uint8_t v);
void buffer_u32(struct buffer *b, uint32_t v);
void buffer_u64(struct buffer *b, uint64_t v);
void buffer_raw(struct buffer *b, const void *p, size_t n);
/* A u32 length and the bytes. A null pointer with length 0 is NO_BYTES. */
void buffer_bytes(struct buffer *b, const void *p, size_t n);
void buffer_set_u32(struct buffer *b, size_t at, uint32_t v);
/* Clears what was written, PINs and plaintexts among it, and frees it. */
void buffer_wipe(struct buffer *b);

struct view {
	const unsigned char *p;
	size_t length;
	bool bad; /* something was missing: all values read since are zero */
};

uint8_t view_u8(struct view *v);
uint32_t view_u32(struct view *v);
uint64_t view_u64(struct view *v);
/* The next n bytes, which stay where they are; NULL if there are not as many. */
const unsigned char *view_raw(struct view *v, size_t n);
/* A u32 length and as many bytes. A null pointer has length 0. */
const unsigned char *view_bytes(struct view *v, size_t *n);

uint32_t decode_u32(const unsigned char *p);
void encode_u32(unsigned char *p, uint32_t v);

#endif
