/* What needs no key: beginning and ending, interfaces, slots, sessions, digests. */
#include "load.h"
#include "test.h"

static CK_RV mutex(void **m)
{
	(void)m;
	return CKR_OK;
}

static CK_RV mutex_use(void *m)
{
	(void)m;
	return CKR_OK;
}

/* beginning calls C_Initialize in every wrong way, and too early and too often. */
static void beginning(struct setting *s)
{
	CK_INFO info;
	CK_ULONG n = 0;
	CK_C_INITIALIZE_ARGS own = {mutex, mutex_use, mutex_use, mutex_use, 0, NULL}, some = {mutex, NULL, NULL, NULL, 0, NULL};
	CK_C_INITIALIZE_ARGS reserved = {NULL, NULL, NULL, NULL, CKF_OS_LOCKING_OK, &n};
	CK_C_INITIALIZE_ARGS both = {mutex, mutex_use, mutex_use, mutex_use, CKF_OS_LOCKING_OK, NULL};
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_GetInfo(&info));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_GetSlotList(CK_TRUE, NULL, &n));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_CloseSession(1));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_Finalize(NULL));
	want(CKR_CANT_LOCK, s->f->C_Initialize(&own));
	want(CKR_ARGUMENTS_BAD, s->f->C_Initialize(&some));
	want(CKR_ARGUMENTS_BAD, s->f->C_Initialize(&reserved));
	ok(s->f->C_Initialize(&both));
	want(CKR_CRYPTOKI_ALREADY_INITIALIZED, s->f->C_Initialize(NULL));
	want(CKR_ARGUMENTS_BAD, s->f->C_Finalize(&n));
	ok(s->f->C_Finalize(NULL));
	ok(s->f->C_Initialize(NULL));
	ok(s->f->C_GetInfo(&info));
	is(info.cryptokiVersion.major >= 2);
	want(CKR_ARGUMENTS_BAD, s->f->C_GetInfo(NULL));
}

/* interfaces asks for each function list; those of C_GetInterface must be complete. */
static void interfaces(struct setting *s)
{
	CK_RV (*list)(CK_INTERFACE *, CK_ULONG *);
	CK_RV (*get)(CK_UTF8CHAR *, CK_VERSION *, CK_INTERFACE **, CK_FLAGS);
	CK_INTERFACE all[8], *one = NULL;
	CK_ULONG n = 0, few = 1;
	CK_UTF8CHAR name[] = "PKCS 11", other[] = "Vendor";
	CK_VERSION v3 = {3, 0}, v32 = {3, 2}, v2 = {2, 40}, v4 = {4, 0};
	void *symbol = load_symbol(s->module, "C_GetInterfaceList");
	memcpy(&list, &symbol, sizeof list);
	symbol = load_symbol(s->module, "C_GetInterface");
	memcpy(&get, &symbol, sizeof get);
	ok(list(NULL, &n));
	is(n == 3);
	want(CKR_BUFFER_TOO_SMALL, list(all, &few));
	is(few == 3);
	n = 8;
	ok(list(all, &n));
	is(n == 3 && strcmp((char *)all[0].pInterfaceName, "PKCS 11") == 0);
	ok(get(NULL, NULL, &one, 0));
	is(((CK_VERSION *)one->pFunctionList)->major == 3);
	ok(get(name, &v3, &one, 0));
	CK_FUNCTION_LIST_3_0 *f3 = one->pFunctionList;
	is(f3->C_SessionCancel != NULL && f3->C_MessageVerifyFinal != NULL);
	want(CKR_FUNCTION_NOT_SUPPORTED, f3->C_MessageSignFinal(1));
	ok(get(name, &v32, &one, 0));
	is(((CK_FUNCTION_LIST_3_2 *)one->pFunctionList)->C_UnwrapKeyAuthenticated != NULL);
	ok(get(name, &v2, &one, 0));
	is(one->pFunctionList == s->f && s->f->version.minor == 40);
	want(CKR_FUNCTION_FAILED, get(name, &v4, &one, 0));
	want(CKR_FUNCTION_FAILED, get(other, NULL, &one, 0));
	want(CKR_FUNCTION_FAILED, get(name, NULL, &one, 1));
}

static void slots(struct setting *s)
{
	CK_SLOT_INFO slot;
	CK_TOKEN_INFO token;
	CK_SLOT_ID ids[64];
	CK_MECHANISM_TYPE mechanisms[512];
	CK_MECHANISM_INFO mechanism;
	CK_ULONG n = 0, m = 512, small = 0;
	ok(s->f->C_GetSlotList(CK_TRUE, NULL, &n));
	is(n >= 1 && n <= 64);
	want(CKR_BUFFER_TOO_SMALL, s->f->C_GetSlotList(CK_TRUE, ids, &small));
	is(small == n);
	s->slot = first_slot(s->f);
	ok(s->f->C_GetSlotInfo(s->slot, &slot));
	is((slot.flags & CKF_TOKEN_PRESENT) != 0);
	ok(s->f->C_GetTokenInfo(s->slot, &token));
	want(CKR_SLOT_ID_INVALID, s->f->C_GetTokenInfo(0x7ffffff7, &token));
	ok(s->f->C_GetMechanismList(s->slot, mechanisms, &m));
	is(m > 10);
	ok(s->f->C_GetMechanismInfo(s->slot, CKM_RSA_PKCS, &mechanism));
	is(mechanism.ulMaxKeySize >= 2048);
}

static void sessions(struct setting *s)
{
	CK_SESSION_INFO info;
	CK_SESSION_HANDLE a = 0, b = 0;
	want(CKR_ARGUMENTS_BAD, s->f->C_OpenSession(s->slot, CKF_SERIAL_SESSION, NULL, NULL, NULL));
	ok(s->f->C_OpenSession(s->slot, CKF_SERIAL_SESSION, NULL, NULL, &a));
	ok(s->f->C_OpenSession(s->slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &b));
	is(a != 0 && a != b);
	ok(s->f->C_GetSessionInfo(a, &info));
	is(info.slotID == s->slot && info.state == 0);
	ok(s->f->C_GetSessionInfo(b, &info));
	is(info.state == 2);
	want(CKR_FUNCTION_NOT_PARALLEL, s->f->C_GetFunctionStatus(a));
	want(CKR_FUNCTION_NOT_PARALLEL, s->f->C_CancelFunction(a));
	ok(s->f->C_CloseSession(a));
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(a, &info));
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(b | 1UL << 45, &info));
	ok(s->f->C_CloseAllSessions(s->slot));
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GetSessionInfo(b, &info));
}

static void digests(struct setting *s)
{
	static const CK_BYTE abc[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
				      0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
	CK_MECHANISM m = {CKM_SHA256, NULL, 0};
	CK_BYTE out[32], text[] = "abc";
	CK_ULONG n = 0, zero = 0;
	CK_SESSION_HANDLE h = open_session(s);
	ok(s->f->C_DigestInit(h, &m));
	ok(s->f->C_Digest(h, text, 3, NULL, &n));
	is(n == 32);
	want(CKR_ARGUMENTS_BAD, s->f->C_Digest(h, NULL, 3, out, &n));
	want(CKR_ARGUMENTS_BAD, s->f->C_Digest(h, text, 3, out, NULL));
	s->f->C_DigestInit(h, &m); /* our daemon has ended it */
	want(CKR_BUFFER_TOO_SMALL, s->f->C_Digest(h, text, 3, out, &zero));
	is(zero == 32);
	ok(s->f->C_Digest(h, text, 3, out, &n));
	is(n == 32 && memcmp(out, abc, 32) == 0);
	ok(s->f->C_DigestInit(h, &m));
	ok(s->f->C_DigestUpdate(h, text, 1));
	ok(s->f->C_DigestUpdate(h, text + 1, 2));
	ok(s->f->C_DigestFinal(h, out, &n));
	is(memcmp(out, abc, 32) == 0);
	want(CKR_OPERATION_NOT_INITIALIZED, s->f->C_DigestUpdate(h, text, 1));
}

static void randomness(struct setting *s)
{
	static CK_BYTE large[200000], zero[1000];
	CK_SESSION_HANDLE h = open_session(s);
	ok(s->f->C_GenerateRandom(h, large, sizeof large));
	is(memcmp(large + sizeof large - sizeof zero, zero, sizeof zero) != 0);
	CK_RV rv = s->f->C_GenerateRandom(h, large, 0); /* SoftHSM wants a place for nothing, too */
	is(rv == CKR_OK || rv == CKR_ARGUMENTS_BAD);
	want(CKR_ARGUMENTS_BAD, s->f->C_GenerateRandom(h, NULL, 8));
	want(CKR_SESSION_HANDLE_INVALID, s->f->C_GenerateRandom(0x7777, large, 8));
}

void mode_general(struct setting *s)
{
	beginning(s);
	interfaces(s);
	slots(s);
	sessions(s);
	digests(s);
	randomness(s);
	ok(s->f->C_Finalize(NULL));
	want(CKR_CRYPTOKI_NOT_INITIALIZED, s->f->C_CloseSession(1));
}
