/* Every kind of call, with little room for results, against a server that answers
 * whatever it likes. Nothing is expected but that the program lives, and that no
 * result is longer than its place. */
#include "test.h"

enum { ROUNDS = 150 };

static CK_FUNCTION_LIST *f;

static void slots(void)
{
	CK_INFO info;
	CK_SLOT_INFO slot;
	CK_TOKEN_INFO token;
	CK_MECHANISM_INFO mechanism;
	CK_SLOT_ID ids[2];
	CK_MECHANISM_TYPE types[3];
	CK_ULONG n = 2, m = 3, asked = 0;
	f->C_GetInfo(&info);
	f->C_GetSlotInfo(1, &slot);
	f->C_GetTokenInfo(1, &token);
	f->C_GetMechanismInfo(1, 1, &mechanism);
	if (f->C_GetSlotList(CK_TRUE, ids, &n) == CKR_OK)
		is(n <= 2);
	if (f->C_GetMechanismList(1, types, &m) == CKR_OK)
		is(m <= 3);
	f->C_GetMechanismList(1, NULL, &asked);
	f->C_WaitForSlotEvent(CKF_DONT_BLOCK, ids, NULL);
}

static void objects(CK_SESSION_HANDLE h)
{
	CK_OBJECT_HANDLE found[3], key;
	CK_ULONG n = 99;
	CK_MECHANISM m = {CKM_AES_KEY_GEN, NULL, 0};
	if (f->C_FindObjects(h, found, 3, &n) == CKR_OK)
		is(n <= 3);
	f->C_GenerateKey(h, &m, NULL, 0, &key);
	f->C_GenerateKeyPair(h, &m, NULL, 0, NULL, 0, &key, &found[0]);
	f->C_GetObjectSize(h, 1, &n);
}

static void attributes(CK_SESSION_HANDLE h)
{
	CK_BYTE label[5], nested_value[3];
	CK_OBJECT_CLASS class;
	CK_BBOOL token;
	CK_MECHANISM_TYPE allowed[2];
	CK_ATTRIBUTE nested[] = {{CKA_LABEL, nested_value, sizeof nested_value}, {CKA_CLASS, NULL, 0}};
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class),        ATTR(CKA_LABEL, label),          ATTR(CKA_TOKEN, token),
			    ATTR(CKA_WRAP_TEMPLATE, nested), ATTR(CKA_ALLOWED_MECHANISMS, allowed), {CKA_VALUE, NULL, 0}};
	if (f->C_GetAttributeValue(h, 1, t, COUNT(t)) == CKR_OK)
		is(t[1].ulValueLen <= sizeof label || t[1].ulValueLen == CK_UNAVAILABLE_INFORMATION);
}

static void bytes(CK_SESSION_HANDLE h)
{
	CK_BYTE out[10], in[10] = {0};
	CK_ULONG n = sizeof out;
	if (f->C_Sign(h, in, sizeof in, out, &n) == CKR_OK)
		is(n <= sizeof out);
	n = sizeof out;
	if (f->C_DecryptFinal(h, out, &n) == CKR_OK)
		is(n <= sizeof out);
	f->C_Encrypt(h, in, sizeof in, NULL, &n);
	f->C_GenerateRandom(h, out, sizeof out);
	f->C_Verify(h, in, sizeof in, in, sizeof in);
}

void mode_hostile(struct setting *s)
{
	f = s->f;
	for (int i = 0; i < ROUNDS; i++) {
		CK_SESSION_HANDLE h = 0;
		if (f->C_Initialize(NULL) != CKR_OK)
			continue;
		slots();
		f->C_OpenSession(1, CKF_SERIAL_SESSION, NULL, NULL, &h);
		objects(h);
		f->C_OpenSession(1, CKF_SERIAL_SESSION, NULL, NULL, &h);
		attributes(h);
		f->C_OpenSession(1, CKF_SERIAL_SESSION, NULL, NULL, &h);
		bytes(h);
		f->C_Finalize(NULL);
	}
}
