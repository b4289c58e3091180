package rpc

import "strings"

// Call is the number of a PKCS #11 function on the wire.
type Call uint32

// The calls.
const (
	callError Call = iota
	Initialize
	Finalize
	GetInfo
	GetSlotList
	GetSlotInfo
	GetTokenInfo
	GetMechanismList
	GetMechanismInfo
	InitToken
	OpenSession
	CloseSession
	CloseAllSessions
	GetSessionInfo
	InitPIN
	SetPIN
	GetOperationState
	SetOperationState
	Login
	Logout
	CreateObject
	CopyObject
	DestroyObject
	GetObjectSize
	GetAttributeValue
	SetAttributeValue
	FindObjectsInit
	FindObjects
	FindObjectsFinal
	EncryptInit
	Encrypt
	EncryptUpdate
	EncryptFinal
	DecryptInit
	Decrypt
	DecryptUpdate
	DecryptFinal
	DigestInit
	Digest
	DigestUpdate
	DigestKey
	DigestFinal
	SignInit
	Sign
	SignUpdate
	SignFinal
	SignRecoverInit
	SignRecover
	VerifyInit
	Verify
	VerifyUpdate
	VerifyFinal
	VerifyRecoverInit
	VerifyRecover
	DigestEncryptUpdate
	DecryptDigestUpdate
	SignEncryptUpdate
	DecryptVerifyUpdate
	GenerateKey
	GenerateKeyPair
	WrapKey
	UnwrapKey
	DeriveKey
	SeedRandom
	GenerateRandom
	WaitForSlotEvent
	LoginUser
	SessionCancel
	MessageEncryptInit
)

// The calls that later versions added.
const (
	MessageVerifyFinal Call = 87
	InitToken2         Call = 88
	DeriveKey2         Call = 89
	EncapsulateKey     Call = 256
	DecapsulateKey     Call = 257
	// Pair is the beginning of an operation and the call that does it, in one request. Its
	// answer is that of the latter, or of the former if that fails.
	Pair Call = 258
)

// does is which call does at once what another begins.
var does = map[Call]Call{EncryptInit: Encrypt, DecryptInit: Decrypt, DigestInit: Digest, SignInit: Sign, VerifyInit: Verify}

// Signature says what a call carries: one or two letters for each value.
type Signature struct {
	Name              string
	Request, Response string
}

// signatures is the table of all calls.
var signatures = map[Call]Signature{
	Initialize:          {"C_Initialize", "ayyay", ""},
	Finalize:            {"C_Finalize", "", ""},
	GetInfo:             {"C_GetInfo", "", "vsusv"},
	GetSlotList:         {"C_GetSlotList", "yfu", "au"},
	GetSlotInfo:         {"C_GetSlotInfo", "u", "ssuvv"},
	GetTokenInfo:        {"C_GetTokenInfo", "u", "ssssuuuuuuuuuuuvvs"},
	GetMechanismList:    {"C_GetMechanismList", "ufu", "au"},
	GetMechanismInfo:    {"C_GetMechanismInfo", "uu", "uuu"},
	InitToken:           {"C_InitToken", "uayz", ""},
	OpenSession:         {"C_OpenSession", "uu", "u"},
	CloseSession:        {"C_CloseSession", "u", ""},
	CloseAllSessions:    {"C_CloseAllSessions", "u", ""},
	GetSessionInfo:      {"C_GetSessionInfo", "u", "uuuu"},
	InitPIN:             {"C_InitPIN", "uay", ""},
	SetPIN:              {"C_SetPIN", "uayay", ""},
	GetOperationState:   {"C_GetOperationState", "ufy", "ay"},
	SetOperationState:   {"C_SetOperationState", "uayuu", ""},
	Login:               {"C_Login", "uuay", ""},
	Logout:              {"C_Logout", "u", ""},
	CreateObject:        {"C_CreateObject", "uaA", "u"},
	CopyObject:          {"C_CopyObject", "uuaA", "u"},
	DestroyObject:       {"C_DestroyObject", "uu", ""},
	GetObjectSize:       {"C_GetObjectSize", "uu", "u"},
	GetAttributeValue:   {"C_GetAttributeValue", "uufA", "aAu"},
	SetAttributeValue:   {"C_SetAttributeValue", "uuaA", ""},
	FindObjectsInit:     {"C_FindObjectsInit", "uaA", ""},
	FindObjects:         {"C_FindObjects", "ufu", "au"},
	FindObjectsFinal:    {"C_FindObjectsFinal", "u", ""},
	EncryptInit:         {"C_EncryptInit", "uMu", ""},
	Encrypt:             {"C_Encrypt", "uayfy", "ay"},
	EncryptUpdate:       {"C_EncryptUpdate", "uayfy", "ay"},
	EncryptFinal:        {"C_EncryptFinal", "ufy", "ay"},
	DecryptInit:         {"C_DecryptInit", "uMu", ""},
	Decrypt:             {"C_Decrypt", "uayfy", "ay"},
	DecryptUpdate:       {"C_DecryptUpdate", "uayfy", "ay"},
	DecryptFinal:        {"C_DecryptFinal", "ufy", "ay"},
	DigestInit:          {"C_DigestInit", "uM", ""},
	Digest:              {"C_Digest", "uayfy", "ay"},
	DigestUpdate:        {"C_DigestUpdate", "uay", ""},
	DigestKey:           {"C_DigestKey", "uu", ""},
	DigestFinal:         {"C_DigestFinal", "ufy", "ay"},
	SignInit:            {"C_SignInit", "uMu", ""},
	Sign:                {"C_Sign", "uayfy", "ay"},
	SignUpdate:          {"C_SignUpdate", "uay", ""},
	SignFinal:           {"C_SignFinal", "ufy", "ay"},
	SignRecoverInit:     {"C_SignRecoverInit", "uMu", ""},
	SignRecover:         {"C_SignRecover", "uayfy", "ay"},
	VerifyInit:          {"C_VerifyInit", "uMu", ""},
	Verify:              {"C_Verify", "uayay", ""},
	VerifyUpdate:        {"C_VerifyUpdate", "uay", ""},
	VerifyFinal:         {"C_VerifyFinal", "uay", ""},
	VerifyRecoverInit:   {"C_VerifyRecoverInit", "uMu", ""},
	VerifyRecover:       {"C_VerifyRecover", "uayfy", "ay"},
	DigestEncryptUpdate: {"C_DigestEncryptUpdate", "uayfy", "ay"},
	DecryptDigestUpdate: {"C_DecryptDigestUpdate", "uayfy", "ay"},
	SignEncryptUpdate:   {"C_SignEncryptUpdate", "uayfy", "ay"},
	DecryptVerifyUpdate: {"C_DecryptVerifyUpdate", "uayfy", "ay"},
	GenerateKey:         {"C_GenerateKey", "uMaA", "u"},
	GenerateKeyPair:     {"C_GenerateKeyPair", "uMaAaA", "uu"},
	WrapKey:             {"C_WrapKey", "uMuufy", "ay"},
	UnwrapKey:           {"C_UnwrapKey", "uMuayaA", "u"},
	DeriveKey:           {"C_DeriveKey", "uMuaA", "u"},
	SeedRandom:          {"C_SeedRandom", "uay", ""},
	GenerateRandom:      {"C_GenerateRandom", "ufy", "ay"},
	WaitForSlotEvent:    {"C_WaitForSlotEvent", "u", "u"},
	LoginUser:           {"C_LoginUser", "uuayay", ""},
	SessionCancel:       {"C_SessionCancel", "uu", ""},
	InitToken2:          {"C_InitToken2", "uays", ""},
	EncapsulateKey:      {"C_EncapsulateKey", "uMuaAfy", "ayu"},
	DecapsulateKey:      {"C_DecapsulateKey", "uMuaAay", "u"},
	Pair:                {"a pair of calls", "uayay", ""},
}

// prompt are the calls that are answered at once: nobody else is asked, or rarely.
var prompt = map[Call]bool{
	GetInfo: true, GetSlotList: true, GetMechanismList: true, GetMechanismInfo: true, GetSessionInfo: true, SessionCancel: true,
	FindObjects: true, FindObjectsFinal: true, Digest: true, DigestUpdate: true, DigestFinal: true, SignUpdate: true, VerifyUpdate: true,
	EncryptInit: true, DecryptInit: true, DigestInit: true, SignInit: true, SignRecoverInit: true, VerifyInit: true, VerifyRecoverInit: true,
}

// SignatureOf returns a call's signature; ok is false for calls that are not
// served: the message calls, whose parameters are pointers of the peer, and what is
// not known.
func SignatureOf(c Call) (s Signature, ok bool) {
	s, ok = signatures[c]
	return s, ok
}

// String is the name of the PKCS #11 function.
func (c Call) String() string {
	if s, ok := signatures[c]; ok {
		return s.Name
	}
	return "C_?"
}

// letters splits a signature into its values.
func letters(signature string) (out []string) {
	for signature != "" {
		n := 1
		if strings.HasPrefix(signature, "a") || strings.HasPrefix(signature, "f") {
			n = 2
		}
		out, signature = append(out, signature[:n]), signature[n:]
	}
	return out
}

var requestLetters, responseLetters = func() (req, resp map[Call][]string) {
	req, resp = map[Call][]string{}, map[Call][]string{}
	for c, s := range signatures {
		req[c], resp[c] = letters(s.Request), letters(s.Response)
	}
	return req, resp
}()
