#include "conn.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define BUCKETS 64
#define GREETING 30 /* seconds */

/* A thread that waits for the answer of one code. */
struct waiter {
	uint32_t code;
	bool done;
	bool asleep; /* in pthread_cond_wait, so it can be made the reader */
	struct answer answer;
	pthread_cond_t wake;
	struct waiter *next;
};

struct conn {
	int fd;
	enum form form;
	uint32_t generation;
	atomic_uint references;

	pthread_mutex_t writing; /* held while a frame is written */

	pthread_mutex_t lock; /* guards what follows */
	uint32_t code;
	bool reading; /* a thread reads; it alone uses input */
	struct waiter *waiters[BUCKETS];

	atomic_bool dead;
	size_t from, to; /* what of input is still to be consumed */
	unsigned char input[16384];
};

enum form conn_form(const struct conn *c) { return c->form; }
uint32_t conn_generation(const struct conn *c) { return c->generation; }
bool conn_dead(struct conn *c) { return atomic_load(&c->dead); }

struct conn *conn_ref(struct conn *c)
{
	atomic_fetch_add(&c->references, 1);
	return c;
}

void conn_unref(struct conn *c)
{
	if (atomic_fetch_sub(&c->references, 1) != 1)
		return;
	close(c->fd);
	pthread_mutex_destroy(&c->writing);
	pthread_mutex_destroy(&c->lock);
	explicit_bzero(c->input, sizeof c->input);
	free(c);
}

void conn_abandon(struct conn *c)
{
	close(c->fd);
	explicit_bzero(c->input, sizeof c->input);
}

void answer_wipe(struct answer *a)
{
	if (a->data != NULL) {
		explicit_bzero(a->data, a->length);
		free(a->data);
	}
	memset(a, 0, sizeof *a);
}

/* send_all writes n bytes. Never raises SIGPIPE. */
static bool send_all(int fd, const unsigned char *p, size_t n)
{
	while (n > 0) {
		ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		p += sent;
		n -= (size_t)sent;
	}
	return true;
}

/* receive_some reads at least one byte, at most n. 0 at the end or on an error. */
static size_t receive_some(int fd, unsigned char *p, size_t n)
{
	for (;;) {
		ssize_t got = recv(fd, p, n, 0);
		if (got < 0 && errno == EINTR)
			continue;
		return got <= 0 ? 0 : (size_t)got;
	}
}

/* take reads exactly n bytes, by way of input if they are few. Of input it clears
 * what it hands out. For the reader only. */
static bool take(struct conn *c, unsigned char *p, size_t n)
{
	while (n > 0) {
		if (c->from == c->to && n >= sizeof c->input) {
			size_t got = receive_some(c->fd, p, n);
			if (got == 0)
				return false;
			p += got;
			n -= got;
			continue;
		}
		if (c->from == c->to) {
			c->from = 0;
			c->to = receive_some(c->fd, c->input, sizeof c->input);
			if (c->to == 0)
				return false;
		}
		size_t part = c->to - c->from < n ? c->to - c->from : n;
		memcpy(p, c->input + c->from, part);
		explicit_bzero(c->input + c->from, part);
		c->from += part;
		p += part;
		n -= part;
	}
	return true;
}

/* read_frame reads one answer. The options, of which the daemon sends none, are
 * counted against the limit and dropped. For the reader only. */
static bool read_frame(struct conn *c, uint32_t *code, struct answer *a)
{
	unsigned char header[HEADER_LENGTH], skip[64];
	if (!take(c, header, sizeof header))
		return false;
	*code = decode_u32(header);
	size_t options = decode_u32(header + 4), body = decode_u32(header + 8);
	if (options > MAX_FRAME || body > MAX_FRAME || body == 0)
		return false;
	while (options > 0) {
		size_t part = options < sizeof skip ? options : sizeof skip;
		if (!take(c, skip, part))
			return false;
		options -= part;
	}
	a->data = malloc(body);
	a->length = a->data == NULL ? 0 : body;
	if (a->data == NULL)
		return false;
	if (take(c, a->data, body))
		return true;
	answer_wipe(a);
	return false;
}

static struct waiter **find(struct conn *c, uint32_t code)
{
	struct waiter **w = &c->waiters[code % BUCKETS];
	while (*w != NULL && (*w)->code != code)
		w = &(*w)->next;
	return w;
}

/* join makes the waiter known under a code nobody else has. With lock held. */
static void join(struct conn *c, struct waiter *w)
{
	do {
		w->code = c->code++;
	} while (w->code == 0 || *find(c, w->code) != NULL);
	w->next = c->waiters[w->code % BUCKETS];
	c->waiters[w->code % BUCKETS] = w;
}

static void leave(struct conn *c, struct waiter *w)
{
	struct waiter **at = find(c, w->code);
	if (*at == w)
		*at = w->next;
}

static void wake_all(struct conn *c)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct waiter *w = c->waiters[i]; w != NULL; w = w->next)
			pthread_cond_signal(&w->wake);
}

/* pass_on lets another waiter read, if there is one. With lock held. */
static void pass_on(struct conn *c)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct waiter *w = c->waiters[i]; w != NULL; w = w->next)
			if (w->asleep && !w->done) {
				pthread_cond_signal(&w->wake);
				return;
			}
}

/* With lock held. */
static void fail_locked(struct conn *c)
{
	if (!atomic_exchange(&c->dead, true))
		shutdown(c->fd, SHUT_RDWR);
	wake_all(c);
}

void conn_fail(struct conn *c)
{
	pthread_mutex_lock(&c->lock);
	fail_locked(c);
	pthread_mutex_unlock(&c->lock);
}

/* deliver gives the answer to the thread that waits for it. An answer nobody asked
 * for ends the connection: the two sides no longer agree. With lock held. */
static bool deliver(struct conn *c, uint32_t code, struct answer *a)
{
	struct waiter **at = find(c, code), *w = *at;
	if (w == NULL || w->done) {
		answer_wipe(a);
		return false;
	}
	w->answer = *a;
	w->done = true;
	*at = w->next;
	if (w->asleep)
		pthread_cond_signal(&w->wake);
	return true;
}

/* read_for reads and delivers until w has its answer. With lock held, which it gives
 * up while it reads. */
static void read_for(struct conn *c, struct waiter *w)
{
	c->reading = true;
	while (!w->done && !conn_dead(c)) {
		struct answer a = {NULL, 0};
		uint32_t code = 0;
		pthread_mutex_unlock(&c->lock);
		bool ok = read_frame(c, &code, &a);
		pthread_mutex_lock(&c->lock);
		if (!ok || !deliver(c, code, &a))
			fail_locked(c);
	}
	c->reading = false;
	pass_on(c);
}

/* await waits until w has its answer or the connection has failed. */
static bool await(struct conn *c, struct waiter *w)
{
	pthread_mutex_lock(&c->lock);
	while (!w->done && !conn_dead(c)) {
		if (!c->reading) {
			read_for(c, w);
			continue;
		}
		w->asleep = true;
		pthread_cond_wait(&w->wake, &c->lock);
		w->asleep = false;
	}
	leave(c, w);
	bool done = w->done;
	pthread_mutex_unlock(&c->lock);
	return done;
}

bool conn_exchange(struct conn *c, struct buffer *request, struct answer *answer)
{
	struct waiter w = {.wake = PTHREAD_COND_INITIALIZER};
	int cancel;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	pthread_mutex_lock(&c->lock);
	join(c, &w);
	pthread_mutex_unlock(&c->lock);

	encode_u32(request->data, w.code);
	encode_u32(request->data + 4, (uint32_t)(BODY_AT - HEADER_LENGTH));
	encode_u32(request->data + 8, (uint32_t)(request->length - BODY_AT));
	memcpy(request->data + HEADER_LENGTH, OPTIONS, BODY_AT - HEADER_LENGTH);

	pthread_mutex_lock(&c->writing);
	bool ok = !conn_dead(c) && send_all(c->fd, request->data, request->length);
	pthread_mutex_unlock(&c->writing);
	if (!ok)
		conn_fail(c);
	ok = await(c, &w);
	pthread_cond_destroy(&w.wake);
	*answer = w.answer;
	pthread_setcancelstate(cancel, NULL);
	return ok;
}

static int dial(const char *path)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	size_t length = strlen(path);
	if (length >= sizeof to.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(to.sun_path, path, length + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	int rc;
	do {
		rc = connect(fd, (struct sockaddr *)&to, sizeof to);
	} while (rc < 0 && errno == EINTR);
	if (rc == 0)
		return fd;
	int why = errno;
	close(fd);
	errno = why;
	return -1;
}

/* greet offers a version and returns a connected socket, or -1. A server that does
 * not say within GREETING what it speaks is none. */
static int greet(const char *path, unsigned char offer, unsigned char *answer)
{
	const struct timeval limit = {.tv_sec = GREETING}, none = {0};
	int fd = dial(path);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (send_all(fd, &offer, 1) && receive_some(fd, answer, 1) == 1 && *answer <= offer) {
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
		return fd;
	}
	close(fd);
	errno = ECONNRESET;
	return -1;
}

struct conn *conn_open(const char *path, uint32_t generation)
{
	unsigned char version = 0;
	int fd = greet(path, OWN_VERSION, &version);
	if (fd < 0 && errno == ECONNRESET) /* servers up to 0.24.1 hang up on any byte but 0 */
		fd = greet(path, 0, &version);
	if (fd < 0)
		return NULL;
	struct conn *c = calloc(1, sizeof *c);
	if (c == NULL) {
		close(fd);
		errno = ENOMEM;
		return NULL;
	}
	c->fd = fd;
	c->form = version == OWN_VERSION ? FORM_OWN : version >= 2 ? FORM_THIRD : version == 1 ? FORM_SECOND : FORM_FIRST;
	c->generation = generation;
	c->code = 0x10;
	atomic_init(&c->references, 1);
	pthread_mutex_init(&c->writing, NULL);
	pthread_mutex_init(&c->lock, NULL);
	return c;
}
