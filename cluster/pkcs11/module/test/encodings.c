/* Calls with known arguments, for a server that compares what arrives. It refuses them
 * all with CKR_FUNCTION_FAILED; what the module refuses itself is CKR_MECHANISM_INVALID. */
#include "test.h"

static CK_BYTE iv[16];
static CK_BYTE aad[] = {1, 2, 3}, point[] = {4, 5, 6, 7}, text[] = "text";
static CK_FUNCTION_LIST *f;

static void passes(CK_RV rv)
{
	is(rv == CKR_FUNCTION_FAILED || rv == CKR_MECHANISM_INVALID);
}

static void sign_init(CK_MECHANISM_TYPE type, void *parameter, CK_ULONG n)
{
	CK_MECHANISM m = {type, parameter, n};
	passes(f->C_SignInit(1, &m, 2));
}

static void ciphers(void)
{
	CK_GCM_PARAMS gcm = {iv, 12, 96, aad, sizeof aad, 128};
	CK_GCM_PARAMS_NO_IV_BITS older = {iv, 12, aad, sizeof aad, 128};
	CK_AES_CTR_PARAMS ctr = {128, {0}};
	CK_RSA_PKCS_OAEP_PARAMS oaep = {CKM_SHA_1, 1, 1, NULL, 0};
	CK_RSA_AES_KEY_WRAP_PARAMS both = {256, &oaep};
	CK_CCM_PARAMS ccm = {64, iv, 7, aad, sizeof aad, 8};
	sign_init(CKM_AES_GCM, &gcm, sizeof gcm);
	sign_init(CKM_AES_GCM, &older, sizeof older);
	sign_init(CKM_AES_CTR, &ctr, sizeof ctr);
	sign_init(CKM_AES_CBC, iv, sizeof iv);
	sign_init(CKM_RSA_PKCS_OAEP, &oaep, sizeof oaep);
	sign_init(CKM_RSA_AES_KEY_WRAP, &both, sizeof both);
	sign_init(CKM_AES_CCM, &ccm, sizeof ccm);
	sign_init(CKM_AES_KEY_WRAP, NULL, 0);
	sign_init(CKM_AES_KEY_WRAP, iv, 8);
	CK_MECHANISM m = {CKM_AES_GCM, &gcm, sizeof gcm};
	CK_ULONG n = 0;
	passes(f->C_EncryptInit(1, &m, 2));
	passes(f->C_WrapKey(1, &m, 2, 3, NULL, &n));
}

static void derivations(void)
{
	CK_ECDH1_DERIVE_PARAMS ecdh = {1, 0, NULL, sizeof point, point};
	CK_HKDF_PARAMS hkdf = {CK_TRUE, CK_FALSE, CKM_SHA256, 2, iv, 2, 5, text, 4};
	CK_SP800_108_COUNTER_FORMAT counter = {CK_FALSE, 32};
	CK_SP800_108_DKM_LENGTH_FORMAT length = {1, CK_TRUE, 16};
	CK_PRF_DATA_PARAM items[] = {{1, &counter, sizeof counter}, {4, text, 4}, {3, &length, sizeof length}};
	CK_SP800_108_KDF_PARAMS kdf = {CKM_SHA256_HMAC, 3, items, 0, NULL};
	CK_OBJECT_HANDLE handle = 9;
	sign_init(CKM_ECDH1_DERIVE, &ecdh, sizeof ecdh);
	sign_init(CKM_HKDF_DERIVE, &hkdf, sizeof hkdf);
	sign_init(CKM_SP800_108_COUNTER_KDF, &kdf, sizeof kdf);
	sign_init(CKM_CONCATENATE_BASE_AND_KEY, &handle, sizeof handle);
}

static void signatures(void)
{
	CK_RSA_PKCS_PSS_PARAMS pss = {CKM_SHA256, CKG_MGF1_SHA256, 32};
	CK_EDDSA_PARAMS ed = {CK_TRUE, 4, text};
	CK_SIGN_ADDITIONAL_CONTEXT context = {1, text, 4};
	CK_ULONG general = 12;
	sign_init(CKM_SHA256_RSA_PKCS, NULL, 0);
	sign_init(CKM_RSA_PKCS_PSS, &pss, sizeof pss);
	sign_init(CKM_EDDSA, NULL, 0);
	sign_init(CKM_EDDSA, &ed, sizeof ed);
	sign_init(CKM_ML_DSA, &context, sizeof context);
	sign_init(CKM_SHA256_HMAC_GENERAL, &general, sizeof general);
	sign_init(0x80001234, text, 4);
	sign_init(0x80001234, NULL, 0);
	passes(f->C_SignInit(1, NULL, 2));
}

/* templates has an attribute of each class, one that is not there, and a number that
 * is narrower than it should be. */
static void templates(void)
{
	CK_OBJECT_CLASS class = CKO_SECRET_KEY;
	CK_MECHANISM_TYPE allowed[] = {CKM_AES_GCM, CKM_AES_CBC};
	unsigned int narrow = CKK_AES;
	CK_ATTRIBUTE inner[] = {ATTR(CKA_EXTRACTABLE, no), ATTR(CKA_CLASS, class)};
	CK_ATTRIBUTE t[] = {ATTR(CKA_CLASS, class), ATTR(CKA_KEY_TYPE, narrow), ATTR(CKA_TOKEN, yes), {CKA_LABEL, text, 4},
			    {CKA_ID, NULL, 0}, ATTR(CKA_WRAP_TEMPLATE, inner), ATTR(CKA_ALLOWED_MECHANISMS, allowed),
			    {CKA_VALUE, NULL, CK_UNAVAILABLE_INFORMATION}};
	CK_ATTRIBUTE rooms[] = {{CKA_CLASS, &class, 8}, {CKA_LABEL, NULL, 0}, {CKA_WRAP_TEMPLATE, inner, sizeof inner}};
	want(CKR_FUNCTION_FAILED, f->C_FindObjectsInit(1, t, COUNT(t)));
	passes(f->C_FindObjectsInit(1, NULL, 0));
	CK_RV rv = f->C_GetAttributeValue(1, 2, rooms, COUNT(rooms));
	is(rv == CKR_FUNCTION_FAILED || rv == CKR_ATTRIBUTE_TYPE_INVALID);
	want(CKR_ATTRIBUTE_VALUE_INVALID, f->C_FindObjectsInit(1, (CK_ATTRIBUTE[]){{CKA_TOKEN, text, 4}}, 1));
	want(CKR_ATTRIBUTE_VALUE_INVALID, f->C_FindObjectsInit(1, (CK_ATTRIBUTE[]){{CKA_LABEL, NULL, 4}}, 1));
	want(CKR_ATTRIBUTE_TYPE_INVALID, f->C_FindObjectsInit(1, (CK_ATTRIBUTE[]){{1UL << 33, text, 4}}, 1));
	want(CKR_ARGUMENTS_BAD, f->C_FindObjectsInit(1, NULL, 1));
	want(CKR_DATA_LEN_RANGE, f->C_SeedRandom(1, text, 1UL << 40));
}

/* endless is a template that contains itself. */
static void endless(void)
{
	CK_ATTRIBUTE t = {CKA_WRAP_TEMPLATE, NULL, sizeof t};
	t.pValue = &t;
	want(CKR_ATTRIBUTE_VALUE_INVALID, f->C_FindObjectsInit(1, &t, 1));
	CK_RV rv = f->C_GetAttributeValue(1, 2, &t, 1);
	is(rv == CKR_ATTRIBUTE_TYPE_INVALID);
}

static void buffers(void)
{
	CK_BYTE out[16];
	CK_ULONG room = sizeof out, none = 0;
	want(CKR_FUNCTION_FAILED, f->C_Login(1, CKU_USER, (CK_BYTE *)"user:word", 9));
	want(CKR_FUNCTION_FAILED, f->C_Login(1, CKU_USER, NULL, 0));
	want(CKR_FUNCTION_FAILED, f->C_Sign(1, text, 4, out, &room));
	want(CKR_FUNCTION_FAILED, f->C_Sign(1, text, 0, NULL, &room));
	want(CKR_FUNCTION_FAILED, f->C_SignFinal(1, out, &none));
	want(CKR_FUNCTION_FAILED, f->C_GetSlotList(CK_FALSE, NULL, &none));
	want(CKR_FUNCTION_FAILED, f->C_OpenSession(7, 6, NULL, NULL, &none));
	want(CKR_FUNCTION_FAILED, f->C_InitToken(7, text, 4, (CK_UTF8CHAR *)"a label of thirty-two characters"));
}

void mode_encodings(struct setting *s)
{
	f = s->f;
	ok(f->C_Initialize(NULL));
	signatures();
	ciphers();
	derivations();
	templates();
	endless();
	buffers();
	ok(f->C_Finalize(NULL));
}
