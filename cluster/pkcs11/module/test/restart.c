/* Applications under which the daemon goes away. They say "ready" and go on at the
 * end of a line of their input, when it is there again. */
#include "test.h"

#include <pthread.h>
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
