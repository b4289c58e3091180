/* Applications under which the daemon goes away or stands still. They say "ready" and
 * go on at the end of a line of their input, when that has happened. */
#include "test.h"

#include <pthread.h>
#include <sys/auxv.h>
#include <unistd.h>

static void rendezvous(const char *word)
{
	char line[16];
	puts(word);
	fflush(stdout);
	is(fgets(line, sizeof line, stdin) != NULL);
}

static void use(struct setting *s, CK_OBJECT_HANDLE key)
{
	CK_MECHANISM m = {CKM_SHA256_HMAC, NULL, 0};
	CK_BYTE out[32];
	CK_ULONG n = sizeof out;
	ok(s->f->C_SignInit(s->session, &m, key));
	ok(s->f->C_Sign(s->session, out, 1, out, &n));
}

/* sessions_gone says that every call with a session of before fails, for ever, and
 * that handles of before name nothing after. */
static void sessions_gone(struct setting *s, CK_OBJECT_HANDLE old)
{
	CK_SESSION_HANDLE before = s->session;
	CK_SESSION_INFO info;
	CK_MECHANISM m = {CKM_SHA256_HMAC, NULL, 0};
	CK_RV rv = s->f->C_GetSessionInfo(before, &info);
	is(rv == CKR_DEVICE_REMOVED || rv == CKR_SESSION_HANDLE_INVALID);
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(before, &info));
	log_in(s);
	is(s->session != before);
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(before, &info));
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	is(key != old);
	want(CKR_OBJECT_HANDLE_INVALID, s->f->C_SignInit(s->session, &m, old));
	use(s, key);
}

/* waits is in a call that does not return while the daemon lives. */
static void *waits(void *argument)
{
	const struct setting *s = argument;
	CK_SLOT_ID slot;
	CK_RV rv = s->f->C_WaitForSlotEvent(0, &slot, NULL);
	is(rv == CKR_DEVICE_REMOVED || rv == CKR_FUNCTION_NOT_SUPPORTED);
	return NULL;
}

void mode_restart(struct setting *s)
{
	pthread_t waiting;
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	use(s, key);
	rendezvous("ready");
	sessions_gone(s, key); /* it is back */
	key = make_generic(s, s->session);
	is(pthread_create(&waiting, NULL, waits, s) == 0);
	rendezvous("ready");
	is(pthread_join(waiting, NULL) == 0);
	ok(s->f->C_Finalize(NULL)); /* it is back, and the application begins anew */
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	use(s, make_generic(s, s->session));
	rendezvous("ready");
	ok(s->f->C_Finalize(NULL)); /* it is gone */
	want(CKR_FUNCTION_FAILED, s->f->C_Initialize(NULL));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_CloseSession(1));
	rendezvous("ready");
	ok(s->f->C_Initialize(NULL)); /* it is back */
	log_in(s);
	use(s, make_generic(s, s->session));
	ok(s->f->C_Finalize(NULL));
}

/* keeps_asking asks until there is no answer, for more than the socket's buffers hold. */
static void *keeps_asking(void *argument)
{
	const struct setting *s = argument; /* with a session of its own */
	static CK_BYTE data[1 << 20];
	CK_BYTE out[32];
	CK_MECHANISM m = {CKM_SHA256, NULL, 0};
	CK_SESSION_HANDLE h = s->session;
	CK_RV rv = CKR_OK;
	while (rv == CKR_OK) {
		CK_ULONG n = sizeof out;
		rv = s->f->C_DigestInit(h, &m);
		if (rv == CKR_OK)
			rv = s->f->C_Digest(h, data, sizeof data, out, &n);
	}
	is(rv == CKR_DEVICE_REMOVED || rv == CKR_SESSION_HANDLE_INVALID);
	return NULL;
}

/* finds_nobody asks for what needs no session. */
static void *finds_nobody(void *argument)
{
	const struct setting *s = argument;
	CK_SESSION_HANDLE h;
	CK_INFO info;
	CK_RV rv = s->f->C_OpenSession(s->slot, CKF_SERIAL_SESSION, NULL, NULL, &h);
	is(rv == CKR_DEVICE_REMOVED || rv == CKR_DEVICE_ERROR);
	want(CKR_DEVICE_ERROR, s->f->C_GetInfo(&info));
	return NULL;
}

void mode_stopped(struct setting *s)
{
	enum { THREADS = 6 };
	pthread_t asking[THREADS], searching[THREADS];
	struct setting each[THREADS];
	CK_SESSION_INFO info;
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	use(s, key);
	for (int i = 0; i < THREADS; i++) {
		each[i] = *s;
		each[i].session = open_session(s);
		is(pthread_create(&asking[i], NULL, keeps_asking, &each[i]) == 0);
	}
	rendezvous("ready");
	for (int i = 0; i < THREADS; i++) /* it stands still, and all that were in a call come out */
		is(pthread_join(asking[i], NULL) == 0);
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(s->session, &info));
	for (int i = 0; i < THREADS; i++)
		is(pthread_create(&searching[i], NULL, finds_nobody, s) == 0);
	for (int i = 0; i < THREADS; i++)
		is(pthread_join(searching[i], NULL) == 0);
	rendezvous("ready");
	sessions_gone(s, key); /* it goes on */
	rendezvous("ready");
	ok(s->f->C_Finalize(NULL)); /* it stands still again */
	want(CKR_FUNCTION_FAILED, s->f->C_Initialize(NULL));
	rendezvous("ready");
	ok(s->f->C_Initialize(NULL)); /* it goes on */
	log_in(s);
	use(s, make_generic(s, s->session));
	ok(s->f->C_Finalize(NULL));
}

void mode_address(struct setting *s)
{
	printf("secure %lu\n", getauxval(AT_SECURE));
	ok(s->f->C_Initialize(NULL));
	ok(s->f->C_Finalize(NULL));
}

void mode_wait(struct setting *s)
{
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	make_generic(s, s->session);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
