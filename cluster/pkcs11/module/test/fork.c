/* Children of an application: one that ends at once, one that begins anew, and one
 * born while other threads of the parent are in the middle of calls. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

static void use(struct setting *s)
{
	CK_MECHANISM m = {CKM_SHA256_HMAC, NULL, 0};
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	CK_BYTE out[32];
	CK_ULONG n = sizeof out;
	ok(s->f->C_SignInit(s->session, &m, key));
	ok(s->f->C_Sign(s->session, out, 1, out, &n));
}

/* child is what every child does: it is not initialised, and may be, with a
 * connection, a login and a session of its own. */
static void child(struct setting s)
{
	CK_SESSION_INFO info;
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s.f->C_GetSessionInfo(s.session, &info));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s.f->C_Finalize(NULL));
	ok(s.f->C_Initialize(NULL));
	want(CKR_SESSION_HANDLE_INVALID, s.f->C_GetSessionInfo(s.session, &info));
	log_in(&s);
	use(&s);
	ok(s.f->C_Finalize(NULL));
	_exit(0); /* what the parent's other threads had in hand is no leak of the child's */
}

static pid_t spawn(struct setting *s)
{
	fflush(NULL);
	pid_t pid = fork();
	is(pid >= 0);
	if (pid == 0)
		child(*s);
	return pid;
}

static void reap(pid_t pid)
{
	int status = 0;
	is(waitpid(pid, &status, 0) == pid);
	is(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static atomic_bool stop;

static void *traffic(void *argument)
{
	struct setting s = *(struct setting *)argument;
	s.session = open_session(&s);
	while (!atomic_load(&stop))
		use(&s);
	return NULL;
}

void mode_fork(struct setting *s)
{
	pthread_t threads[4];
	pid_t children[8];
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	reap(spawn(s));
	use(s);
	for (size_t i = 0; i < COUNT(threads); i++)
		is(pthread_create(&threads[i], NULL, traffic, s) == 0);
	for (size_t i = 0; i < COUNT(children); i++)
		children[i] = spawn(s);
	for (size_t i = 0; i < COUNT(children); i++)
		reap(children[i]);
	atomic_store(&stop, true);
	for (size_t i = 0; i < COUNT(threads); i++)
		is(pthread_join(threads[i], NULL) == 0);
	use(s);
	ok(s->f->C_Finalize(NULL));
}
