#include "conn.h"
#include "pair.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 64
#define GREETING 30 /* seconds */

/* How long the socket waits for bytes, or for room, before the one who uses it looks
 * at the clock. */
#define SLICE 1 /* seconds */

/* A thread that waits for the answer of one code. */
struct waiter {
	uint32_t code;
	bool done;
	bool asleep; /* in pthread_cond_wait, so it can be made the reader */
	struct answer answer;
	struct timespec deadline; /* as deadline_in gives it */
	pthread_cond_t wake;
	struct waiter *next;
};

struct conn {
	int fd;
	enum form form;
	uint32_t generation;
	int bound; /* seconds that a call may take */
	atomic_uint references;
	struct pairs *pairs;

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
int conn_bound(const struct conn *c) { return c->bound; }
struct pairs *conn_pairs(const struct conn *c) { return c->pairs; }
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
	pairs_free(c->pairs);
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

/* deadline_in is the time so many seconds from now; NO_BOUND is never. */
static struct timespec deadline_in(int seconds)
{
	struct timespec t = {.tv_sec = NO_BOUND};
	if (seconds == NO_BOUND)
		return t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += seconds;
	return t;
}

static bool past(const struct timespec *deadline)
{
	struct timespec now;
	if (deadline->tv_sec == NO_BOUND)
		return false;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > deadline->tv_sec || (now.tv_sec == deadline->tv_sec && now.tv_nsec >= deadline->tv_nsec);
}

/* again says whether what the socket said is no end, and there is time to ask anew. */
static bool again(const struct timespec *deadline)
{
	if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) {
		if (!past(deadline))
			return true;
		errno = ETIMEDOUT;
	}
	return false;
}

/* send_all writes n bytes. Never raises SIGPIPE. */
static bool send_all(int fd, const unsigned char *p, size_t n, const struct timespec *deadline)
{
	while (n > 0) {
		ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
		if (sent < 0 && again(deadline))
			continue;
		if (sent <= 0)
			return false;
		p += sent;
		n -= (size_t)sent;
	}
	return true;
}

/* receive_some reads at least one byte, at most n. 0 at the end or on an error, and
 * when there is no time left, however busily the peer sends. */
static size_t receive_some(int fd, unsigned char *p, size_t n, const struct timespec *deadline)
{
	while (!past(deadline)) {
		ssize_t got = recv(fd, p, n, 0);
		if (got < 0 && again(deadline))
			continue;
		if (got == 0)
			errno = ECONNRESET;
		return got <= 0 ? 0 : (size_t)got;
	}
	errno = ETIMEDOUT;
	return 0;
}

/* take reads exactly n bytes, by way of input if they are few. Of input it clears
 * what it hands out. For the reader only. */
static bool take(struct conn *c, unsigned char *p, size_t n, const struct timespec *deadline)
{
	while (n > 0) {
		if (c->from == c->to && n >= sizeof c->input) {
			size_t got = receive_some(c->fd, p, n, deadline);
			if (got == 0)
				return false;
			p += got;
			n -= got;
			continue;
		}
		if (c->from == c->to) {
			c->from = 0;
			c->to = receive_some(c->fd, c->input, sizeof c->input, deadline);
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
static bool read_frame(struct conn *c, uint32_t *code, struct answer *a, const struct timespec *deadline)
{
	unsigned char header[HEADER_LENGTH], skip[64];
	if (!take(c, header, sizeof header, deadline))
		return false;
	*code = decode_u32(header);
	size_t options = decode_u32(header + 4), body = decode_u32(header + 8);
	if (options > MAX_FRAME || body > MAX_FRAME || body == 0)
		return false;
	while (options > 0) {
		size_t part = options < sizeof skip ? options : sizeof skip;
		if (!take(c, skip, part, deadline))
			return false;
		options -= part;
	}
	a->data = malloc(body);
	a->length = a->data == NULL ? 0 : body;
	if (a->data == NULL)
		return false;
	if (take(c, a->data, body, deadline))
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

/* read_for reads and delivers until w has its answer, or no time left for it. With
 * lock held, which it gives up while it reads. */
static void read_for(struct conn *c, struct waiter *w)
{
	c->reading = true;
	while (!w->done && !conn_dead(c)) {
		struct answer a = {NULL, 0};
		uint32_t code = 0;
		pthread_mutex_unlock(&c->lock);
		bool ok = read_frame(c, &code, &a, &w->deadline);
		pthread_mutex_lock(&c->lock);
		if (!ok || !deliver(c, code, &a))
			fail_locked(c);
	}
	c->reading = false;
	pass_on(c);
}

/* doze waits to be woken. False when the time for w is over. With lock held. */
static bool doze(struct conn *c, struct waiter *w)
{
	w->asleep = true;
	int rc = w->deadline.tv_sec == NO_BOUND ? pthread_cond_wait(&w->wake, &c->lock)
						: pthread_cond_timedwait(&w->wake, &c->lock, &w->deadline);
	w->asleep = false;
	return rc != ETIMEDOUT || w->done;
}

/* await waits until w has its answer or the connection has failed. Who has waited too
 * long ends the connection for all: an answer that comes later must find nobody who
 * could take it for another, and a daemon that is silent for so long hangs. */
static enum outcome await(struct conn *c, struct waiter *w)
{
	pthread_mutex_lock(&c->lock);
	while (!w->done && !conn_dead(c)) {
		if (!c->reading) {
			read_for(c, w);
			continue;
		}
		if (!doze(c, w))
			fail_locked(c);
	}
	leave(c, w);
	bool done = w->done;
	pthread_mutex_unlock(&c->lock);
	return done ? OUTCOME_ANSWER : past(&w->deadline) ? OUTCOME_LATE : OUTCOME_LOST;
}

/* init_wake makes a condition whose time is that of the deadlines. */
static void init_wake(pthread_cond_t *wake)
{
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(wake, &attributes);
	pthread_condattr_destroy(&attributes);
}

/* write_frame has a bound also for a call that may wait for its answer for ever: the
 * calls of other threads are behind it. */
static bool write_frame(struct conn *c, const struct buffer *request)
{
	struct timespec deadline = deadline_in(c->bound);
	pthread_mutex_lock(&c->writing);
	bool ok = !conn_dead(c) && send_all(c->fd, request->data, request->length, &deadline);
	pthread_mutex_unlock(&c->writing);
	return ok;
}

enum outcome conn_exchange(struct conn *c, struct buffer *request, struct answer *answer, int bound)
{
	struct waiter w = {.deadline = deadline_in(bound == 0 ? c->bound : bound)};
	int cancel;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	init_wake(&w.wake);
	pthread_mutex_lock(&c->lock);
	join(c, &w);
	pthread_mutex_unlock(&c->lock);

	encode_u32(request->data, w.code);
	encode_u32(request->data + 4, (uint32_t)(BODY_AT - HEADER_LENGTH));
	encode_u32(request->data + 8, (uint32_t)(request->length - BODY_AT));
	memcpy(request->data + HEADER_LENGTH, OPTIONS, BODY_AT - HEADER_LENGTH);

	if (!write_frame(c, request))
		conn_fail(c);
	enum outcome outcome = await(c, &w);
	pthread_cond_destroy(&w.wake);
	*answer = w.answer;
	pthread_setcancelstate(cancel, NULL);
	return outcome;
}

/* dial connects, within the time a daemon has for the greeting: one that does not
 * accept has its queue full some day. */
static int dial(const char *path, int seconds)
{
	const struct timeval limit = {.tv_sec = seconds}, slice = {.tv_sec = SLICE};
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
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	do {
		rc = connect(fd, (struct sockaddr *)&to, sizeof to);
	} while (rc < 0 && errno == EINTR);
	if (rc == 0) {
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &slice, sizeof slice);
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &slice, sizeof slice);
		return fd;
	}
	int why = errno;
	close(fd);
	errno = why;
	return -1;
}

/* greet offers a version and returns a connected socket, or -1: with ETIMEDOUT for a
 * server that does not say in time what it speaks, ECONNRESET for one that says
 * nothing of use. */
static int greet(const char *path, unsigned char offer, unsigned char *answer, int seconds)
{
	int fd = dial(path, seconds);
	if (fd < 0)
		return -1;
	struct timespec deadline = deadline_in(seconds);
	if (send_all(fd, &offer, 1, &deadline) && receive_some(fd, answer, 1, &deadline) == 1 && *answer <= offer)
		return fd;
	int why = errno == ETIMEDOUT ? ETIMEDOUT : ECONNRESET;
	close(fd);
	errno = why;
	return -1;
}

struct conn *conn_open(const char *path, uint32_t generation, int bound)
{
	unsigned char version = 0;
	int seconds = bound < GREETING ? bound : GREETING;
	int fd = greet(path, OWN_VERSION, &version, seconds);
	if (fd < 0 && errno == ECONNRESET) /* servers up to 0.24.1 hang up on any byte but 0 */
		fd = greet(path, 0, &version, seconds);
	if (fd < 0)
		return NULL;
	struct conn *c = calloc(1, sizeof *c);
	if (c != NULL)
		c->pairs = pairs_new();
	if (c == NULL || c->pairs == NULL) {
		free(c);
		close(fd);
		errno = ENOMEM;
		return NULL;
	}
	c->fd = fd;
	c->form = version == OWN_VERSION ? FORM_OWN : version >= 2 ? FORM_THIRD : version == 1 ? FORM_SECOND : FORM_FIRST;
	c->generation = generation;
	c->bound = bound;
	c->code = 0x10;
	atomic_init(&c->references, 1);
	pthread_mutex_init(&c->writing, NULL);
	pthread_mutex_init(&c->lock, NULL);
	return c;
}
