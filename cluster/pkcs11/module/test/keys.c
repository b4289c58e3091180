/* Keys, and what is done with them through any PKCS #11 module. */
#include "test.h"

static CK_ULONG bits2048 = 2048, length32 = 32;
static CK_BYTE p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static CK_BYTE f4[] = {1, 0, 1};
static CK_BYTE message[] = "a message of some length that is no multiple of anything";
#define MESSAGE message, sizeof message

CK_OBJECT_HANDLE make_aes(const struct setting *s, CK_SESSION_HANDLE session)
{
	CK_MECHANISM m = {CKM_AES_KEY_GEN, NULL, 0};
	CK_ATTRIBUTE t[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_ENCRYPT, yes), ATTR(CKA_DECRYPT, yes), ATTR(CKA_WRAP, yes),
			    ATTR(CKA_UNWRAP, yes), ATTR(CKA_SIGN, yes), ATTR(CKA_VERIFY, yes), ATTR(CKA_EXTRACTABLE, yes),
			    ATTR(CKA_VALUE_LEN, length32)};
	CK_OBJECT_HANDLE key = 0;
	ok(s->f->C_GenerateKey(session, &m, t, COUNT(t), &key));
	is(key != 0);
	return key;
}

CK_OBJECT_HANDLE make_generic(const struct setting *s, CK_SESSION_HANDLE session)
{
	CK_MECHANISM m = {CKM_GENERIC_SECRET_KEY_GEN, NULL, 0};
	CK_ATTRIBUTE t[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes), ATTR(CKA_VERIFY, yes), ATTR(CKA_EXTRACTABLE, yes),
			    ATTR(CKA_VALUE_LEN, length32)};
	CK_OBJECT_HANDLE key = 0;
	ok(s->f->C_GenerateKey(session, &m, t, COUNT(t), &key));
	return key;
}

void make_ec(const struct setting *s, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *public, CK_OBJECT_HANDLE *private)
{
	CK_MECHANISM m = {CKM_EC_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_VERIFY, yes), ATTR(CKA_EC_PARAMS, p256)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes), ATTR(CKA_DERIVE, yes)};
	ok(s->f->C_GenerateKeyPair(session, &m, pub, COUNT(pub), priv, COUNT(priv), public, private));
}

void make_rsa(const struct setting *s, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *public, CK_OBJECT_HANDLE *private)
{
	CK_MECHANISM m = {CKM_RSA_PKCS_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_VERIFY, yes), ATTR(CKA_ENCRYPT, yes), ATTR(CKA_WRAP, yes),
			      ATTR(CKA_MODULUS_BITS, bits2048), ATTR(CKA_PUBLIC_EXPONENT, f4)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes), ATTR(CKA_DECRYPT, yes), ATTR(CKA_UNWRAP, yes)};
	ok(s->f->C_GenerateKeyPair(session, &m, pub, COUNT(pub), priv, COUNT(priv), public, private));
}

/* sign_and_verify uses one mechanism, and sees a changed message refused. */
static void sign_and_verify(struct setting *s, CK_MECHANISM m, CK_BYTE *data, CK_ULONG n, CK_OBJECT_HANDLE private, CK_OBJECT_HANDLE public)
{
	CK_BYTE signature[512], changed[256];
	CK_ULONG length = 0, small = 1;
	ok(s->f->C_SignInit(s->session, &m, private));
	ok(s->f->C_Sign(s->session, data, n, NULL, &length));
	is(length > 0 && length <= sizeof signature);
	want(CKR_BUFFER_TOO_SMALL, s->f->C_Sign(s->session, data, n, signature, &small));
	is(small >= length);
	ok(s->f->C_Sign(s->session, data, n, signature, &length));
	ok(s->f->C_VerifyInit(s->session, &m, public));
	ok(s->f->C_Verify(s->session, data, n, signature, length));
	memcpy(changed, data, n);
	changed[0] ^= 1;
	ok(s->f->C_VerifyInit(s->session, &m, public));
	want(CKR_SIGNATURE_INVALID, s->f->C_Verify(s->session, changed, n, signature, length));
}

static void sign_in_parts(struct setting *s, CK_MECHANISM m, CK_OBJECT_HANDLE private, CK_OBJECT_HANDLE public)
{
	CK_BYTE signature[512];
	CK_ULONG length = sizeof signature;
	ok(s->f->C_SignInit(s->session, &m, private));
	ok(s->f->C_SignUpdate(s->session, message, 10));
	ok(s->f->C_SignUpdate(s->session, message + 10, sizeof message - 10));
	ok(s->f->C_SignFinal(s->session, signature, &length));
	ok(s->f->C_VerifyInit(s->session, &m, public));
	ok(s->f->C_Verify(s->session, MESSAGE, signature, length));
}

static void rsa(struct setting *s)
{
	CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, 32};
	CK_RSA_PKCS_OAEP_PARAMS oaep = {CKM_SHA_1, 1, 1, NULL, 0};
	CK_MECHANISM m = {CKM_RSA_PKCS_OAEP, &oaep, sizeof oaep};
	CK_OBJECT_HANDLE public, private;
	CK_BYTE digest[32] = "thirty two bytes, as of a digest", sealed[256], opened[256];
	CK_ULONG n = sizeof sealed, n2 = sizeof opened;
	make_rsa(s, s->session, &public, &private);
	sign_and_verify(s, (CK_MECHANISM){CKM_SHA256_RSA_PKCS, NULL, 0}, MESSAGE, private, public);
	sign_and_verify(s, (CK_MECHANISM){CKM_RSA_PKCS, NULL, 0}, MESSAGE, private, public);
	sign_and_verify(s, (CK_MECHANISM){CKM_RSA_PKCS_PSS, &pss, sizeof pss}, digest, 32, private, public);
	sign_in_parts(s, (CK_MECHANISM){CKM_SHA256_RSA_PKCS, NULL, 0}, private, public);
	ok(s->f->C_EncryptInit(s->session, &m, public));
	ok(s->f->C_Encrypt(s->session, MESSAGE, sealed, &n));
	ok(s->f->C_DecryptInit(s->session, &m, private));
	ok(s->f->C_Decrypt(s->session, sealed, n, opened, &n2));
	is(n2 == sizeof message && memcmp(opened, message, n2) == 0);
}

static void ec(struct setting *s)
{
	CK_OBJECT_HANDLE public, private;
	CK_BYTE digest[32] = "thirty two bytes, as of a digest";
	make_ec(s, s->session, &public, &private);
	sign_and_verify(s, (CK_MECHANISM){CKM_ECDSA, NULL, 0}, digest, 32, private, public);
}

static void hmac(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_generic(s, s->session);
	sign_and_verify(s, (CK_MECHANISM){CKM_SHA256_HMAC, NULL, 0}, MESSAGE, key, key);
	sign_in_parts(s, (CK_MECHANISM){CKM_SHA256_HMAC, NULL, 0}, key, key);
}

static void ecb(struct setting *s)
{
	CK_MECHANISM m = {CKM_AES_ECB, NULL, 0};
	CK_BYTE block[32] = "two blocks of a cipher in a row", sealed[32], opened[64];
	CK_ULONG n = sizeof sealed, n2 = sizeof opened;
	CK_OBJECT_HANDLE key = make_aes(s, s->session);
	ok(s->f->C_EncryptInit(s->session, &m, key));
	ok(s->f->C_Encrypt(s->session, block, sizeof block, sealed, &n));
	is(n == 32 && memcmp(block, sealed, 32) != 0);
	ok(s->f->C_DecryptInit(s->session, &m, key));
	ok(s->f->C_Decrypt(s->session, sealed, n, opened, &n2));
	is(n2 == 32 && memcmp(block, opened, 32) == 0);
}

/* attributes reads what is there, what is not, and what may not be read. */
static void attributes(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_aes(s, s->session);
	CK_OBJECT_CLASS class = 99;
	CK_KEY_TYPE type = 99;
	CK_BBOOL token = 7;
	CK_BYTE label[1], modulus[4];
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, type), ATTR(CKA_TOKEN, token), {CKA_VALUE_LEN, NULL, 0}};
	ok(s->f->C_GetAttributeValue(s->session, key, t, COUNT(t)));
	is(class == CKO_SECRET_KEY && type == CKK_AES && token == CK_FALSE && t[3].ulValueLen == sizeof(CK_ULONG));
	CK_ATTRIBUTE name = {CKA_LABEL, (void *)"a name", 6};
	ok(s->f->C_SetAttributeValue(s->session, key, &name, 1));
	CK_ATTRIBUTE small = ATTR(CKA_LABEL, label), wrong = ATTR(CKA_MODULUS, modulus);
	want(CKR_BUFFER_TOO_SMALL, s->f->C_GetAttributeValue(s->session, key, &small, 1));
	is(small.ulValueLen == CK_UNAVAILABLE_INFORMATION);
	want(CKR_ATTRIBUTE_TYPE_INVALID, s->f->C_GetAttributeValue(s->session, key, &wrong, 1));
	is(wrong.ulValueLen == CK_UNAVAILABLE_INFORMATION);
	CK_ATTRIBUTE value = {CKA_VALUE, NULL, 0};
	CK_RV rv = s->f->C_GetAttributeValue(s->session, key, &value, 1);
	is(rv == CKR_ATTRIBUTE_SENSITIVE || rv == CKR_OK);
}

static void find(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_aes(s, s->session), found[8];
	CK_BYTE id[] = "found by its id";
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_ULONG n = 0;
	CK_ATTRIBUTE set = {CKA_ID, id, sizeof id}, t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_ID, id)};
	ok(s->f->C_SetAttributeValue(s->session, key, &set, 1));
	ok(s->f->C_FindObjectsInit(s->session, t, COUNT(t)));
	ok(s->f->C_FindObjects(s->session, found, 8, &n));
	is(n == 1 && found[0] == key);
	ok(s->f->C_FindObjects(s->session, found, 8, &n));
	is(n == 0);
	ok(s->f->C_FindObjectsFinal(s->session));
	ok(s->f->C_DestroyObject(s->session, key));
	want(CKR_OBJECT_HANDLE_INVALID, s->f->C_DestroyObject(s->session, key));
}

static void wrap(struct setting *s)
{
	CK_MECHANISM m = {CKM_RSA_PKCS, NULL, 0};
	CK_OBJECT_HANDLE public, private, key = make_generic(s, s->session), again = 0;
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_GENERIC_SECRET;
	CK_BYTE wrapped[512];
	CK_ULONG n = sizeof wrapped;
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, type), ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes)};
	make_rsa(s, s->session, &public, &private);
	ok(s->f->C_WrapKey(s->session, &m, public, key, wrapped, &n));
	ok(s->f->C_UnwrapKey(s->session, &m, private, wrapped, n, t, COUNT(t), &again));
	CK_MECHANISM mac = {CKM_SHA256_HMAC, NULL, 0};
	CK_BYTE a[32], b[32];
	CK_ULONG na = sizeof a, nb = sizeof b;
	ok(s->f->C_SignInit(s->session, &mac, key));
	ok(s->f->C_Sign(s->session, MESSAGE, a, &na));
	ok(s->f->C_SignInit(s->session, &mac, again));
	ok(s->f->C_Sign(s->session, MESSAGE, b, &nb));
	is(na == nb && memcmp(a, b, na) == 0);
}

void mode_keys(struct setting *s)
{
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	rsa(s);
	ec(s);
	hmac(s);
	ecb(s);
	attributes(s);
	find(s);
	wrap(s);
	ok(s->f->C_Logout(s->session));
	ok(s->f->C_CloseSession(s->session));
	ok(s->f->C_Finalize(NULL));
}
