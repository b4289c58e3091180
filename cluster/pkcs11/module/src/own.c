/* The functions that are not straight lines. */
#include "call.h"
#include "module.h"

#include <string.h>

static const struct call_info call_init_token = {9, "uayz", "", false, false};
static const struct call_info call_init_token2 = {88, "uays", "", false, false};
static const struct call_info call_get_attribute_value = {24, "uufA", "aAu", true, false};
static const struct call_info call_find_objects = {27, "ufu", "au", true, false};
static const struct call_info call_encrypt_init = {29, "uMu", "", true, false};
static const struct call_info call_wrap_key = {60, "uMuufy", "ay", true, false};
static const struct call_info call_generate_random = {64, "ufy", "ay", true, false};
static const struct call_info call_wait_for_slot_event = {65, "u", "u", false, false};

/* What the daemon is asked for at once. */
#define RANDOM_PART 65536

/* The length of an IV that the HSM makes for AES-GCM. */
#define GCM_IV 12

CK_RV C_InitToken(CK_SLOT_ID slotID, CK_BYTE_PTR pPin, CK_ULONG ulPinLen, CK_UTF8CHAR_PTR pLabel)
{
	struct call c;
	struct conn *conn;
	CK_RV rv = module_connection(true, &conn);
	if (rv != CKR_OK)
		return rv;
	call_begin_on(&c, conn_form(conn) == FORM_FIRST ? &call_init_token : &call_init_token2, conn);
	conn_unref(conn);
	put_number(&c, slotID);
	put_bytes(&c, pPin, ulPinLen);
	need(&c, pLabel);
	if (c.rv == CKR_OK)
		buffer_bytes(&c.out, pLabel, 32);
	call_run(&c);
	return call_end(&c);
}

CK_RV C_GetAttributeValue(CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE hObject, CK_ATTRIBUTE_PTR pTemplate, CK_ULONG ulCount)
{
	struct call c;
	call_begin(&c, &call_get_attribute_value);
	put_session(&c, hSession);
	put_object(&c, hObject);
	put_template_room(&c, pTemplate, ulCount);
	call_run(&c);
	get_template(&c, pTemplate, ulCount);
	return call_end(&c);
}

CK_RV C_FindObjects(CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE_PTR phObject, CK_ULONG ulMaxObjectCount, CK_ULONG_PTR pulObjectCount)
{
	struct call c;
	call_begin(&c, &call_find_objects);
	put_session(&c, hSession);
	need(&c, phObject);
	need(&c, pulObjectCount);
	put_list_room(&c, phObject, &ulMaxObjectCount);
	call_run(&c);
	get_objects(&c, phObject, ulMaxObjectCount, pulObjectCount);
	return call_end(&c);
}

static CK_RV random_part(CK_SESSION_HANDLE session, CK_BYTE *p, CK_ULONG n)
{
	struct call c;
	CK_ULONG got = n;
	call_begin(&c, &call_generate_random);
	put_session(&c, session);
	need(&c, p);
	put_room(&c, n == 0 ? NULL : p, &n);
	call_run(&c);
	get_bytes(&c, p, &got);
	if (c.rv == CKR_OK && got != n)
		call_broken(&c);
	return call_end(&c);
}

CK_RV C_GenerateRandom(CK_SESSION_HANDLE hSession, CK_BYTE_PTR pRandomData, CK_ULONG ulRandomLen)
{
	CK_BYTE nothing;
	CK_RV rv;
	if (ulRandomLen == 0)
		pRandomData = &nothing;
	do {
		CK_ULONG n = ulRandomLen < RANDOM_PART ? ulRandomLen : RANDOM_PART;
		rv = random_part(hSession, pRandomData, n);
		if (pRandomData == NULL)
			return rv;
		pRandomData += n;
		ulRandomLen -= n;
	} while (rv == CKR_OK && ulRandomLen > 0);
	return rv;
}

/* iv_wanted is where the IV of a mechanism that seals with AES-GCM is to be written: its
 * place is all zeros, as applications leave it that have the HSM make the IV. NULL if
 * the application brings one. Twelve bytes; both forms of the structure begin alike. */
static CK_BYTE *iv_wanted(const CK_MECHANISM *m)
{
	static const CK_BYTE zeros[GCM_IV];
	CK_GCM_PARAMS_NO_IV_BITS p;
	if (m == NULL || m->mechanism != CKM_AES_GCM || m->pParameter == NULL || !module_makes_iv())
		return NULL;
	if (m->ulParameterLen != sizeof p && m->ulParameterLen != sizeof(CK_GCM_PARAMS))
		return NULL;
	memcpy(&p, m->pParameter, sizeof p);
	return p.pIv != NULL && p.ulIvLen == GCM_IV && memcmp(p.pIv, zeros, GCM_IV) == 0 ? p.pIv : NULL;
}

/* make_iv has the HSM make an IV before it is used, so that an application that finds
 * an IV in its place never finds another than the one it was sealed with. */
static CK_RV make_iv(CK_SESSION_HANDLE session, const CK_MECHANISM *m)
{
	CK_BYTE *iv = iv_wanted(m);
	return iv == NULL ? CKR_OK : random_part(session, iv, GCM_IV);
}

CK_RV C_EncryptInit(CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism, CK_OBJECT_HANDLE hKey)
{
	struct call c;
	CK_RV rv = make_iv(hSession, pMechanism);
	if (rv != CKR_OK)
		return rv;
	call_begin(&c, &call_encrypt_init);
	put_session(&c, hSession);
	put_mechanism(&c, pMechanism);
	put_object(&c, hKey);
	call_run(&c);
	return call_end(&c);
}

/* C_WrapKey makes the IV when the size is asked for, too: the next call finds it. */
CK_RV C_WrapKey(CK_SESSION_HANDLE hSession, CK_MECHANISM_PTR pMechanism, CK_OBJECT_HANDLE hWrappingKey, CK_OBJECT_HANDLE hKey,
		CK_BYTE_PTR pWrappedKey, CK_ULONG_PTR pulWrappedKeyLen)
{
	struct call c;
	CK_RV rv = make_iv(hSession, pMechanism);
	if (rv != CKR_OK)
		return rv;
	call_begin(&c, &call_wrap_key);
	put_session(&c, hSession);
	put_mechanism(&c, pMechanism);
	put_object(&c, hWrappingKey);
	put_object(&c, hKey);
	put_room(&c, pWrappedKey, pulWrappedKeyLen);
	call_run(&c);
	get_bytes(&c, pWrappedKey, pulWrappedKeyLen);
	return call_end(&c);
}

/* C_WaitForSlotEvent waits for as long as it takes, as the application asked. */
CK_RV C_WaitForSlotEvent(CK_FLAGS flags, CK_SLOT_ID_PTR pSlot, CK_VOID_PTR pReserved)
{
	struct call c;
	call_begin(&c, &call_wait_for_slot_event);
	if ((flags & CKF_DONT_BLOCK) == 0)
		c.bound = NO_BOUND;
	put_number(&c, flags);
	need(&c, pSlot);
	need_null(&c, pReserved);
	call_run(&c);
	get_number(&c, pSlot);
	return call_end(&c);
}

/* The functions of parallel sessions, which PKCS #11 keeps only as names. */
static CK_RV not_parallel(CK_SESSION_HANDLE session)
{
	struct conn *conn;
	uint64_t wire;
	CK_RV rv = module_connection(false, &conn);
	if (rv != CKR_OK)
		return rv;
	rv = conn_dead(conn) || !handle_to_wire(conn, session, &wire) ? CKR_SESSION_HANDLE_INVALID : CKR_FUNCTION_NOT_PARALLEL;
	conn_unref(conn);
	return rv;
}

CK_RV C_GetFunctionStatus(CK_SESSION_HANDLE hSession) { return not_parallel(hSession); }
CK_RV C_CancelFunction(CK_SESSION_HANDLE hSession) { return not_parallel(hSession); }

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR ppFunctionList)
{
	if (ppFunctionList == NULL)
		return CKR_ARGUMENTS_BAD;
	*ppFunctionList = &function_list;
	return CKR_OK;
}

/* The interfaces, the one given by default first. A fork ends what the module has, so
 * none claims to be safe for it. */
static CK_CHAR interface_name[] = "PKCS 11";
static CK_INTERFACE interfaces[] = {
	{interface_name, &function_list_3_0, 0},
	{interface_name, &function_list_3_2, 0},
	{interface_name, &function_list, 0},
};
#define INTERFACES (sizeof interfaces / sizeof interfaces[0])

CK_RV C_GetInterfaceList(CK_INTERFACE_PTR pInterfacesList, CK_ULONG_PTR pulCount)
{
	if (pulCount == NULL)
		return CKR_ARGUMENTS_BAD;
	CK_ULONG room = *pulCount;
	*pulCount = INTERFACES;
	if (pInterfacesList == NULL)
		return CKR_OK;
	if (room < INTERFACES)
		return CKR_BUFFER_TOO_SMALL;
	memcpy(pInterfacesList, interfaces, sizeof interfaces);
	return CKR_OK;
}

CK_RV C_GetInterface(CK_UTF8CHAR_PTR pInterfaceName, CK_VERSION_PTR pVersion, CK_INTERFACE_PTR_PTR ppInterface, CK_FLAGS flags)
{
	if (ppInterface == NULL)
		return CKR_ARGUMENTS_BAD;
	for (size_t i = 0; i < INTERFACES; i++) {
		const CK_VERSION *has = interfaces[i].pFunctionList;
		if (pInterfaceName != NULL && strcmp((const char *)pInterfaceName, (const char *)interface_name) != 0)
			continue;
		if (pVersion != NULL && (pVersion->major != has->major || pVersion->minor != has->minor))
			continue;
		if ((flags & interfaces[i].flags) != flags)
			continue;
		*ppInterface = &interfaces[i];
		return CKR_OK;
	}
	return CKR_FUNCTION_FAILED;
}
