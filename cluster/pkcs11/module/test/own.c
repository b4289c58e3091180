/* What the stock client does not pass, or not in every version: the modes of AES,
 * hashing signatures, EdDSA, derivation, key wrap. */
#include "load.h"
#include "test.h"

static CK_BYTE ed25519[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
static CK_BYTE data[64] = "sixty-four bytes, which are a number of blocks of a cipher: yes";
static CK_ULONG length32 = 32;

/* there_and_back encrypts and decrypts. extra is what the sealed data is longer. */
static void there_and_back(struct setting *s, CK_OBJECT_HANDLE key, CK_MECHANISM m, CK_ULONG extra)
{
	CK_BYTE sealed[256], opened[256];
	CK_ULONG n = 0, n2 = sizeof opened;
	ok(s->f->C_EncryptInit(s->session, &m, key));
	ok(s->f->C_Encrypt(s->session, data, sizeof data, NULL, &n));
	is(n >= sizeof data + extra && n <= sizeof sealed);
	ok(s->f->C_Encrypt(s->session, data, sizeof data, sealed, &n));
	is(n == sizeof data + extra && memcmp(sealed, data, 16) != 0);
	ok(s->f->C_DecryptInit(s->session, &m, key));
	ok(s->f->C_Decrypt(s->session, sealed, n, opened, &n2));
	is(n2 == sizeof data && memcmp(opened, data, n2) == 0);
}

static void aes(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_aes(s, s->session);
	CK_BYTE iv[16] = "sixteen bytes iv", aad[5] = "extra";
	CK_AES_CTR_PARAMS ctr = {128, "counter"};
	CK_GCM_PARAMS gcm = {iv, 12, 96, aad, sizeof aad, 128};
	CK_GCM_PARAMS_NO_IV_BITS older = {iv, 12, aad, sizeof aad, 128};
	there_and_back(s, key, (CK_MECHANISM){CKM_AES_CBC, iv, 16}, 0);
	there_and_back(s, key, (CK_MECHANISM){CKM_AES_CBC_PAD, iv, 16}, 16);
	there_and_back(s, key, (CK_MECHANISM){CKM_AES_CTR, &ctr, sizeof ctr}, 0);
	there_and_back(s, key, (CK_MECHANISM){CKM_AES_GCM, &gcm, sizeof gcm}, 16);
	there_and_back(s, key, (CK_MECHANISM){CKM_AES_GCM, &older, sizeof older}, 16);
	CK_MECHANISM wrong = {CKM_AES_GCM, &gcm, sizeof gcm - 4};
	want(CKR_MECHANISM_PARAM_INVALID, s->f->C_EncryptInit(s->session, &wrong, key));
}

static void des3(struct setting *s)
{
	CK_OBJECT_HANDLE key;
	CK_MECHANISM make = {CKM_DES3_KEY_GEN, NULL, 0};
	CK_BYTE iv[8] = "eight by";
	CK_ATTRIBUTE t[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_ENCRYPT, yes), ATTR(CKA_DECRYPT, yes)};
	ok(s->f->C_GenerateKey(s->session, &make, t, COUNT(t), &key));
	there_and_back(s, key, (CK_MECHANISM){CKM_DES3_ECB, NULL, 0}, 0);
	there_and_back(s, key, (CK_MECHANISM){CKM_DES3_CBC, iv, 8}, 0);
	there_and_back(s, key, (CK_MECHANISM){CKM_DES3_CBC_PAD, iv, 8}, 8);
}

static int is_zero(const CK_BYTE *iv)
{
	return memcmp(iv, (CK_BYTE[12]){0}, 12) == 0;
}

/* iv_of_hsm leaves the IV to the HSM, which writes it where the zeros were. */
static void iv_of_hsm(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_aes(s, s->session), again;
	CK_BYTE first[12] = {0}, second[12] = {0}, third[12] = {0}, sealed[128], opened[128];
	CK_GCM_PARAMS gcm = {first, 12, 96, NULL, 0, 128}, wrap = {third, 12, 96, NULL, 0, 128};
	CK_GCM_PARAMS_NO_IV_BITS older = {second, 12, NULL, 0, 128};
	CK_MECHANISM m = {CKM_AES_GCM, &gcm, sizeof gcm}, m2 = {CKM_AES_GCM, &older, sizeof older}, m3 = {CKM_AES_GCM, &wrap, sizeof wrap};
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE aes = CKK_AES;
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, aes), ATTR(CKA_TOKEN, no), ATTR(CKA_DECRYPT, yes)};
	CK_ULONG n = sizeof sealed, n2 = sizeof opened;
	ok(s->f->C_EncryptInit(s->session, &m, key));
	ok(s->f->C_Encrypt(s->session, data, sizeof data, sealed, &n));
	is(!is_zero(first));
	ok(s->f->C_DecryptInit(s->session, &m, key));
	ok(s->f->C_Decrypt(s->session, sealed, n, opened, &n2));
	is(n2 == sizeof data && memcmp(opened, data, n2) == 0);
	there_and_back(s, key, m2, 16);
	is(!is_zero(second) && memcmp(first, second, 12) != 0);
	n = sizeof sealed;
	ok(s->f->C_WrapKey(s->session, &m3, key, key, sealed, &n));
	is(!is_zero(third));
	ok(s->f->C_UnwrapKey(s->session, &m3, key, sealed, n, t, COUNT(t), &again));
}

/* tampered data does not open. */
static void gcm_tampered(struct setting *s)
{
	CK_OBJECT_HANDLE key = make_aes(s, s->session);
	CK_BYTE iv[12] = "twelve bytes", sealed[128], opened[128];
	CK_GCM_PARAMS gcm = {iv, 12, 96, NULL, 0, 128};
	CK_MECHANISM m = {CKM_AES_GCM, &gcm, sizeof gcm};
	CK_ULONG n = sizeof sealed, n2 = sizeof opened;
	ok(s->f->C_EncryptInit(s->session, &m, key));
	ok(s->f->C_Encrypt(s->session, data, sizeof data, sealed, &n));
	sealed[3] ^= 1;
	ok(s->f->C_DecryptInit(s->session, &m, key));
	CK_RV rv = s->f->C_Decrypt(s->session, sealed, n, opened, &n2);
	is(rv == CKR_ENCRYPTED_DATA_INVALID || rv == 0xac /* CKR_AEAD_DECRYPT_FAILED */ || rv == CKR_FUNCTION_FAILED);
}

static void signs(struct setting *s, CK_MECHANISM m, CK_OBJECT_HANDLE private, CK_OBJECT_HANDLE public)
{
	CK_BYTE signature[512];
	CK_ULONG n = sizeof signature;
	ok(s->f->C_SignInit(s->session, &m, private));
	ok(s->f->C_Sign(s->session, data, sizeof data, signature, &n));
	ok(s->f->C_VerifyInit(s->session, &m, public));
	ok(s->f->C_Verify(s->session, data, sizeof data, signature, n));
	signature[n - 1] ^= 1;
	ok(s->f->C_VerifyInit(s->session, &m, public));
	want(CKR_SIGNATURE_INVALID, s->f->C_Verify(s->session, data, sizeof data, signature, n));
}

static void signatures(struct setting *s)
{
	CK_OBJECT_HANDLE public, private;
	CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, 32};
	make_ec(s, s->session, &public, &private);
	signs(s, (CK_MECHANISM){CKM_ECDSA_SHA256, NULL, 0}, private, public);
	make_rsa(s, s->session, &public, &private);
	signs(s, (CK_MECHANISM){CKM_SHA256_RSA_PKCS_PSS, &pss, sizeof pss}, private, public);
	CK_OBJECT_HANDLE key = make_aes(s, s->session);
	signs(s, (CK_MECHANISM){CKM_AES_CMAC, NULL, 0}, key, key);
}

static void eddsa(struct setting *s)
{
	CK_MECHANISM make = {CKM_EC_EDWARDS_KEY_PAIR_GEN, NULL, 0};
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_VERIFY, yes), ATTR(CKA_EC_PARAMS, ed25519)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes)};
	CK_OBJECT_HANDLE public, private;
	ok(s->f->C_GenerateKeyPair(s->session, &make, pub, COUNT(pub), priv, COUNT(priv), &public, &private));
	signs(s, (CK_MECHANISM){CKM_EDDSA, NULL, 0}, private, public);
}

/* derive lets two keys agree on a third. */
static CK_OBJECT_HANDLE derive(struct setting *s, CK_OBJECT_HANDLE private, CK_BYTE *point, CK_ULONG n)
{
	CK_ECDH1_DERIVE_PARAMS p = {1, 0, NULL, n, point};
	CK_MECHANISM m = {CKM_ECDH1_DERIVE, &p, sizeof p};
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_GENERIC_SECRET;
	CK_OBJECT_HANDLE key = 0;
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, type), ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes), ATTR(CKA_VALUE_LEN, length32)};
	ok(s->f->C_DeriveKey(s->session, &m, private, t, COUNT(t), &key));
	return key;
}

static void ecdh(struct setting *s)
{
	CK_OBJECT_HANDLE public[2], private[2], key[2];
	CK_BYTE point[2][128], mac[2][32];
	CK_MECHANISM m = {CKM_SHA256_HMAC, NULL, 0};
	CK_ULONG size[2];
	for (int i = 0; i < 2; i++) {
		make_ec(s, s->session, &public[i], &private[i]);
		CK_ATTRIBUTE t = {CKA_EC_POINT, point[i], sizeof point[i]};
		ok(s->f->C_GetAttributeValue(s->session, public[i], &t, 1));
		size[i] = t.ulValueLen;
	}
	for (int i = 0; i < 2; i++) {
		CK_ULONG n = sizeof mac[i];
		/* without the DER of the octet string around the point */
		key[i] = derive(s, private[i], point[1 - i] + 2, size[1 - i] - 2);
		ok(s->f->C_SignInit(s->session, &m, key[i]));
		ok(s->f->C_Sign(s->session, data, sizeof data, mac[i], &n));
	}
	is(memcmp(mac[0], mac[1], 32) == 0);
}

/* rewrap wraps one AES key with another, brings it back, and sees it do the same. */
static void rewrap(struct setting *s, CK_MECHANISM m)
{
	CK_OBJECT_HANDLE wrapping = make_aes(s, s->session), key = make_aes(s, s->session), again = 0;
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_AES;
	CK_MECHANISM ecb = {CKM_AES_ECB, NULL, 0};
	CK_BYTE wrapped[128], a[64], b[64];
	CK_ULONG n = sizeof wrapped, na = sizeof a, nb = sizeof b;
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, type), ATTR(CKA_TOKEN, no), ATTR(CKA_ENCRYPT, yes)};
	ok(s->f->C_WrapKey(s->session, &m, wrapping, key, wrapped, &n));
	ok(s->f->C_UnwrapKey(s->session, &m, wrapping, wrapped, n, t, COUNT(t), &again));
	ok(s->f->C_EncryptInit(s->session, &ecb, key));
	ok(s->f->C_Encrypt(s->session, data, sizeof data, a, &na));
	ok(s->f->C_EncryptInit(s->session, &ecb, again));
	ok(s->f->C_Encrypt(s->session, data, sizeof data, b, &nb));
	is(na == nb && memcmp(a, b, na) == 0);
}

/* newest gives the function list of version 3.2. */
static CK_FUNCTION_LIST_3_2 *newest(const struct setting *s)
{
	CK_RV (*get)(CK_UTF8CHAR *, CK_VERSION *, CK_INTERFACE **, CK_FLAGS);
	CK_VERSION version = {3, 2};
	CK_INTERFACE *found = NULL;
	void *symbol = load_symbol(s->module, "C_GetInterface");
	memcpy(&get, &symbol, sizeof get);
	ok(get((CK_UTF8CHAR *)"PKCS 11", &version, &found, 0));
	return found->pFunctionList;
}

#define CKA_DECAPSULATE 0x634UL

/* mlkem has both sides agree on a key. */
static void mlkem(struct setting *s)
{
	CK_FUNCTION_LIST_3_2 *f = newest(s);
	CK_MECHANISM make = {CKM_ML_KEM_KEY_PAIR_GEN, NULL, 0}, kem = {CKM_ML_KEM, NULL, 0};
	CK_MECHANISM ecb = {CKM_AES_ECB, NULL, 0};
	CK_ULONG set = 2; /* ML-KEM-768 */
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_KEY_TYPE type = CKK_AES;
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_PARAMETER_SET, set)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_DECAPSULATE, yes)};
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, type), ATTR(CKA_TOKEN, no), ATTR(CKA_ENCRYPT, yes)};
	CK_OBJECT_HANDLE public, private, one = 0, two = 0;
	CK_BYTE sent[1088], a[64], b[64];
	CK_ULONG n = 0, na = sizeof a, nb = sizeof b;
	ok(f->C_GenerateKeyPair(s->session, &make, pub, COUNT(pub), priv, COUNT(priv), &public, &private));
	ok(f->C_EncapsulateKey(s->session, &kem, public, t, COUNT(t), NULL, &n, &one));
	is(n == sizeof sent);
	n = 1;
	want(CKR_BUFFER_TOO_SMALL, f->C_EncapsulateKey(s->session, &kem, public, t, COUNT(t), sent, &n, &one));
	is(n == sizeof sent);
	ok(f->C_EncapsulateKey(s->session, &kem, public, t, COUNT(t), sent, &n, &one));
	ok(f->C_DecapsulateKey(s->session, &kem, private, t, COUNT(t), sent, n, &two));
	ok(f->C_EncryptInit(s->session, &ecb, one));
	ok(f->C_Encrypt(s->session, data, sizeof data, a, &na));
	ok(f->C_EncryptInit(s->session, &ecb, two));
	ok(f->C_Encrypt(s->session, data, sizeof data, b, &nb));
	is(na == nb && memcmp(a, b, na) == 0);
}

/* mldsa signs hedged, and deterministically with a context. */
static void mldsa(struct setting *s)
{
	CK_BYTE context[] = "context", sign[2][3309];
	CK_SIGN_ADDITIONAL_CONTEXT fixed = {2 /* CKH_DETERMINISTIC_REQUIRED */, context, sizeof context};
	CK_MECHANISM make = {CKM_ML_DSA_KEY_PAIR_GEN, NULL, 0}, hedged = {CKM_ML_DSA, NULL, 0};
	CK_MECHANISM same = {CKM_ML_DSA, &fixed, sizeof fixed};
	CK_ULONG set = 2; /* ML-DSA-65 */
	CK_ATTRIBUTE pub[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_VERIFY, yes), ATTR(CKA_PARAMETER_SET, set)};
	CK_ATTRIBUTE priv[] = {ATTR(CKA_TOKEN, no), ATTR(CKA_SIGN, yes)};
	CK_OBJECT_HANDLE public, private;
	ok(s->f->C_GenerateKeyPair(s->session, &make, pub, COUNT(pub), priv, COUNT(priv), &public, &private));
	for (int i = 0; i < 4; i++) {
		CK_MECHANISM *m = i < 2 ? &hedged : &same;
		CK_ULONG n = sizeof sign[0];
		ok(s->f->C_SignInit(s->session, m, private));
		ok(s->f->C_Sign(s->session, data, sizeof data, sign[i % 2], &n));
		is(n == sizeof sign[0]);
		ok(s->f->C_VerifyInit(s->session, m, public));
		ok(s->f->C_Verify(s->session, data, sizeof data, sign[i % 2], n));
		ok(s->f->C_VerifyInit(s->session, i < 2 ? &same : &hedged, public));
		want(CKR_SIGNATURE_INVALID, s->f->C_Verify(s->session, data, sizeof data, sign[i % 2], n));
		if (i % 2 == 1)
			is((memcmp(sign[0], sign[1], n) == 0) == (i > 2));
	}
}

/* senseless arguments end an operation, though the daemon does not see them, and whether
 * it has heard of the operation or is to hear of it with the next call. */
static void senseless(struct setting *s)
{
	CK_OBJECT_HANDLE aes = make_aes(s, s->session), generic = make_generic(s, s->session);
	CK_MECHANISM sha = {CKM_SHA256, NULL, 0}, ecb = {CKM_AES_ECB, NULL, 0}, hmac = {CKM_SHA256_HMAC, NULL, 0};
	CK_BYTE out[64];
	for (int i = 0; i < 3; i++) {
		CK_ULONG n = sizeof out;
		ok(s->f->C_DigestInit(s->session, &sha));
		want(CKR_ARGUMENTS_BAD, s->f->C_Digest(s->session, data, 3, out, NULL));
		want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_Digest(s->session, data, 3, out, &n));
		ok(s->f->C_EncryptInit(s->session, &ecb, aes));
		want(CKR_ARGUMENTS_BAD, s->f->C_Encrypt(s->session, NULL, 16, out, &n));
		ok(s->f->C_EncryptInit(s->session, &ecb, aes));
		want(CKR_ARGUMENTS_BAD, s->f->C_EncryptUpdate(s->session, data, 16, out, NULL));
		ok(s->f->C_SignInit(s->session, &hmac, generic));
		want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_EncryptFinal(s->session, out, &n));
		want(CKR_ARGUMENTS_BAD, s->f->C_SignUpdate(s->session, NULL, 5));
		ok(s->f->C_VerifyInit(s->session, &hmac, generic));
		want(CKR_ARGUMENTS_BAD, s->f->C_Verify(s->session, data, 3, NULL, 32));
		want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_VerifyUpdate(s->session, data, 3));
		ok(s->f->C_SignInit(s->session, &hmac, generic));
		n = sizeof out;
		ok(s->f->C_Sign(s->session, data, 3, out, &n)); /* the next one like it waits */
		ok(s->f->C_SignInit(s->session, &hmac, generic));
		want(CKR_ARGUMENTS_BAD, s->f->C_Sign(s->session, data, 3, out, NULL));
		want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_SignUpdate(s->session, data, 3));
	}
}

void mode_own(struct setting *s)
{
	ok(s->f->C_Initialize(NULL));
	log_in(s);
	aes(s);
	senseless(s);
	des3(s);
	iv_of_hsm(s);
	gcm_tampered(s);
	signatures(s);
	eddsa(s);
	ecdh(s);
	mldsa(s);
	mlkem(s);
	rewrap(s, (CK_MECHANISM){CKM_AES_KEY_WRAP, NULL, 0});
	rewrap(s, (CK_MECHANISM){CKM_AES_KEY_WRAP_KWP, NULL, 0});
	ok(s->f->C_Finalize(NULL));
}
