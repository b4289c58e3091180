/* 32 threads on one connection, each with sessions and keys of its own. */
#include "test.h"

#include <pthread.h>

enum { THREADS = 32, ROUNDS = 25 };

static void *work(void *argument)
{
	const struct setting *s = argument;
	CK_MECHANISM mac = {CKM_SHA256_HMAC, NULL, 0}, sha = {CKM_SHA256, NULL, 0};
	CK_BYTE out[32], again[32], data[1500];
	for (int round = 0; round < ROUNDS; round++) {
		CK_SESSION_HANDLE h = open_session(s);
		CK_OBJECT_HANDLE key = make_generic(s, h);
		CK_ULONG n = sizeof out, n2 = sizeof again;
		memset(data, round, sizeof data);
		ok(s->f->C_SignInit(h, &mac, key));
		ok(s->f->C_Sign(h, data, sizeof data, out, &n));
		ok(s->f->C_VerifyInit(h, &mac, key));
		ok(s->f->C_Verify(h, data, sizeof data, out, n));
		ok(s->f->C_DigestInit(h, &sha));
		ok(s->f->C_Digest(h, data, sizeof data, again, &n2));
		is(n == 32 && n2 == 32 && memcmp(out, again, 32) != 0);
		ok(s->f->C_CloseSession(h));
	}
	return NULL;
}

void mode_threads(struct setting *s)
{
	pthread_t threads[THREADS];
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	for (int i = 0; i < THREADS; i++)
		is(pthread_create(&threads[i], NULL, work, s) == 0);
	for (int i = 0; i < THREADS; i++)
		is(pthread_join(threads[i], NULL) == 0);
	ok(s->f->C_Finalize(NULL));
}
