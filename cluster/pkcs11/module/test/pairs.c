/* One operation like the last, again and again, and all that may come between its
 * beginning and the rest: whatever travels together, an application sees what it would
 * see otherwise. */
#include "test.h"

#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

static CK_BYTE text[] = "the same text, again and again";
static CK_BYTE large[3 << 20];
static CK_MECHANISM hmac = {CKM_SHA256_HMAC, NULL, 0};

struct mac {
	CK_BYTE bytes[32];
};

static CK_RV sign(struct setting *s, CK_OBJECT_HANDLE key, CK_BYTE *data, CK_ULONG n, struct mac *out)
{
	CK_ULONG length = sizeof out->bytes;
	CK_RV rv = s->f->C_SignInit(s->session, &hmac, key);
	return rv != CKR_OK ? rv : s->f->C_Sign(s->session, data, n, out->bytes, &length);
}

static bool same(const struct mac *a, const struct mac *b) { return memcmp(a, b, sizeof *a) == 0; }

/* warm has the session done with an operation whose like comes next. */
static struct mac warm(struct setting *s, CK_OBJECT_HANDLE key)
{
	struct mac first, second;
	ok(sign(s, key, text, sizeof text, &first));
	ok(sign(s, key, text, sizeof text, &second));
	is(same(&first, &second));
	return first;
}

/* between begins an operation like the last and has other calls come before the rest. */
static void between(struct setting *s, CK_OBJECT_HANDLE key, CK_OBJECT_HANDLE other)
{
	struct mac wanted = warm(s, key), got;
	CK_ULONG n = 0, small = 1, length = sizeof got.bytes;
	CK_SESSION_INFO info;
	struct setting second = *s;

	ok(s->f->C_SignInit(s->session, &hmac, key));
	want(CKR_OPERATION_ACTIVE, s->f->C_SignInit(s->session, &hmac, key));
	ok(s->f->C_Sign(s->session, text, sizeof text, got.bytes, &length));
	is(same(&wanted, &got));

	warm(s, key);
	ok(s->f->C_SignInit(s->session, &hmac, key));
	ok(s->f->C_Sign(s->session, text, sizeof text, NULL, &n));
	is(n == sizeof got.bytes);
	want(CKR_BUFFER_TOO_SMALL, s->f->C_Sign(s->session, text, sizeof text, got.bytes, &small));
	want(CKR_OPERATION_ACTIVE, s->f->C_SignInit(s->session, &hmac, key));
	ok(s->f->C_Sign(s->session, text, sizeof text, got.bytes, &length));
	is(same(&wanted, &got));
	want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_Sign(s->session, text, sizeof text, got.bytes, &length));

	warm(s, key);
	ok(s->f->C_SignInit(s->session, &hmac, key));
	ok(s->f->C_SignUpdate(s->session, text, 5));
	ok(s->f->C_SignUpdate(s->session, text + 5, sizeof text - 5));
	ok(s->f->C_SignFinal(s->session, got.bytes, &length));
	is(same(&wanted, &got));

	warm(s, key);
	ok(s->f->C_SignInit(s->session, &hmac, key));
	ok(s->f->C_GetSessionInfo(s->session, &info));
	second.session = open_session(s);
	ok(sign(&second, other, text, sizeof text, &got));
	is(!same(&wanted, &got));
	ok(s->f->C_CloseSession(second.session));
	ok(s->f->C_Sign(s->session, text, sizeof text, got.bytes, &length));
	is(same(&wanted, &got));

	warm(s, key);
	ok(sign(s, other, text, sizeof text, &got));
	is(!same(&wanted, &got));
	ok(sign(s, key, text, sizeof text, &got));
	is(same(&wanted, &got));

	second.session = open_session(s); /* and is closed with an operation begun */
	warm(&second, key);
	ok(s->f->C_SignInit(second.session, &hmac, key));
	ok(s->f->C_CloseSession(second.session));
}

static void others(struct setting *s, CK_OBJECT_HANDLE mac, CK_OBJECT_HANDLE aes)
{
	CK_MECHANISM sha = {CKM_SHA256, NULL, 0}, ecb = {CKM_AES_ECB, NULL, 0};
	struct mac m = warm(s, mac), wrong = m, digest, again;
	wrong.bytes[7] ^= 1;
	for (int i = 0; i < 4; i++) {
		CK_BYTE sealed[32], opened[32];
		CK_ULONG n = sizeof sealed, n2 = sizeof opened, n3 = sizeof digest.bytes;
		ok(s->f->C_VerifyInit(s->session, &hmac, mac));
		ok(s->f->C_Verify(s->session, text, sizeof text, m.bytes, sizeof m.bytes));
		ok(s->f->C_VerifyInit(s->session, &hmac, mac));
		want(CKR_SIGNATURE_INVALID, s->f->C_Verify(s->session, text, sizeof text, wrong.bytes, sizeof wrong.bytes));
		for (int j = 0; j < 3; j++) {
			n = sizeof sealed;
			ok(s->f->C_EncryptInit(s->session, &ecb, aes));
			ok(s->f->C_Encrypt(s->session, large, sizeof sealed, sealed, &n));
		}
		for (int j = 0; j < 3; j++) {
			n2 = sizeof opened;
			ok(s->f->C_DecryptInit(s->session, &ecb, aes));
			ok(s->f->C_Decrypt(s->session, sealed, n, opened, &n2));
			is(n2 == sizeof opened && memcmp(opened, large, n2) == 0);
		}
		for (int j = 0; j < 3; j++) {
			n3 = sizeof digest.bytes;
			ok(s->f->C_DigestInit(s->session, &sha));
			ok(s->f->C_Digest(s->session, text, sizeof text, digest.bytes, &n3));
			is((i == 0 && j == 0) || same(&digest, &again));
			again = digest;
		}
	}
	warm(s, mac); /* what is large does not travel with its beginning */
	ok(sign(s, mac, large, sizeof large, &m));
	ok(sign(s, mac, large, sizeof large, &again));
	is(same(&m, &again));
	for (int i = 0; i < 3; i++)
		ok(sign(s, mac, text, sizeof text, &m));
}

static CK_OBJECT_HANDLE make_token_key(struct setting *s, CK_UTF8CHAR *label, CK_ULONG n)
{
	CK_MECHANISM m = {CKM_GENERIC_SECRET_KEY_GEN, NULL, 0};
	CK_ULONG length = 32;
	CK_OBJECT_HANDLE key = 0;
	CK_ATTRIBUTE t[] = {ATTR(CKA_TOKEN, yes), ATTR(CKA_SIGN, yes), ATTR(CKA_VALUE_LEN, length), {CKA_LABEL, label, n}};
	ok(s->f->C_GenerateKey(s->session, &m, t, COUNT(t), &key));
	return key;
}

/* destroy_elsewhere destroys the keys of a label in another process. */
static void destroy_elsewhere(struct setting s, CK_UTF8CHAR *label, CK_ULONG n)
{
	int status = 0;
	fflush(NULL);
	pid_t pid = fork();
	is(pid >= 0);
	if (pid == 0) {
		CK_ATTRIBUTE t = {CKA_LABEL, label, n};
		CK_OBJECT_HANDLE key = 0;
		CK_ULONG found = 0;
		ok(s.f->C_Initialize(NULL));
		log_in(&s);
		ok(s.f->C_FindObjectsInit(s.session, &t, 1));
		ok(s.f->C_FindObjects(s.session, &key, 1, &found));
		ok(s.f->C_FindObjectsFinal(s.session));
		is(found == 1);
		ok(s.f->C_DestroyObject(s.session, key));
		ok(s.f->C_Finalize(NULL));
		_exit(0);
	}
	is(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* gone uses keys that are not there any more. What this process has done shows where the
 * operation begins; what another has, there or where it is done. */
static void gone(struct setting *s, CK_OBJECT_HANDLE stays)
{
	CK_UTF8CHAR label[] = "of pairs";
	struct mac m;
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	warm(s, key);
	ok(s->f->C_DestroyObject(s->session, key));
	is(s->f->C_SignInit(s->session, &hmac, key) != CKR_OK);
	want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_SignUpdate(s->session, text, 1));

	key = make_token_key(s, label, sizeof label - 1);
	warm(s, key);
	destroy_elsewhere(*s, label, sizeof label - 1);
	is(sign(s, key, text, sizeof text, &m) != CKR_OK);
	want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_SignUpdate(s->session, text, 1));
	warm(s, stays);

	key = make_token_key(s, label, sizeof label - 1);
	warm(s, key);
	destroy_elsewhere(*s, label, sizeof label - 1);
	CK_RV rv = s->f->C_SignInit(s->session, &hmac, key);
	CK_ULONG length = sizeof m.bytes;
	if (rv == CKR_OK)
		rv = s->f->C_SignUpdate(s->session, text, 1);
	if (rv == CKR_OK)
		rv = s->f->C_SignFinal(s->session, m.bytes, &length);
	is(rv != CKR_OK && rv != CKR_OPERATION_NOT_INITIALIZED);
	warm(s, stays);

	ok(s->f->C_Logout(s->session));
	is(s->f->C_SignInit(s->session, &hmac, stays) != CKR_OK);
}

void mode_pairs(struct setting *s)
{
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	CK_OBJECT_HANDLE key = make_generic(s, s->session), other = make_generic(s, s->session);
	between(s, key, other);
	others(s, key, make_aes(s, s->session));
	gone(s, key);
	ok(s->f->C_Finalize(NULL));
}
