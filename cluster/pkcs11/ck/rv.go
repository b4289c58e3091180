package ck

import "fmt"

// RV is CK_RV: what a PKCS #11 function returns.
type RV uint64

// The return values that are used here.
const (
	OK                          RV = 0x000
	RVCancel                    RV = 0x001
	HostMemory                  RV = 0x002
	SlotIDInvalid               RV = 0x003
	GeneralError                RV = 0x005
	FunctionFailed              RV = 0x006
	ArgumentsBad                RV = 0x007
	NoEvent                     RV = 0x008
	AttributeReadOnly           RV = 0x010
	AttributeSensitive          RV = 0x011
	AttributeTypeInvalid        RV = 0x012
	AttributeValueInvalid       RV = 0x013
	ActionProhibited            RV = 0x01B
	DataInvalid                 RV = 0x020
	DataLenRange                RV = 0x021
	DeviceError                 RV = 0x030
	DeviceMemory                RV = 0x031
	DeviceRemoved               RV = 0x032
	EncryptedDataInvalid        RV = 0x040
	EncryptedDataLenRange       RV = 0x041
	FunctionCanceled            RV = 0x050
	FunctionNotSupported        RV = 0x054
	KeyHandleInvalid            RV = 0x060
	KeySizeRange                RV = 0x062
	KeyTypeInconsistent         RV = 0x063
	KeyNeeded                   RV = 0x066
	KeyIndigestible             RV = 0x067
	KeyFunctionNotPermitted     RV = 0x068
	KeyNotWrappable             RV = 0x069
	KeyUnextractable            RV = 0x06A
	MechanismInvalid            RV = 0x070
	MechanismParamInvalid       RV = 0x071
	ObjectHandleInvalid         RV = 0x082
	OperationActive             RV = 0x090
	OperationNotInitialized     RV = 0x091
	PinIncorrect                RV = 0x0A0
	PinInvalid                  RV = 0x0A1
	PinLenRange                 RV = 0x0A2
	PinLocked                   RV = 0x0A4
	SessionClosed               RV = 0x0B0
	SessionCount                RV = 0x0B1
	SessionHandleInvalid        RV = 0x0B3
	SessionParallelNotSupported RV = 0x0B4
	SessionReadOnly             RV = 0x0B5
	SessionExists               RV = 0x0B6
	SessionReadOnlyExists       RV = 0x0B7
	SignatureInvalid            RV = 0x0C0
	SignatureLenRange           RV = 0x0C1
	TemplateIncomplete          RV = 0x0D0
	TemplateInconsistent        RV = 0x0D1
	TokenNotPresent             RV = 0x0E0
	TokenWriteProtected         RV = 0x0E2
	UnwrappingKeyHandleInvalid  RV = 0x0F0
	UnwrappingKeySizeRange      RV = 0x0F1
	UnwrappingKeyTypeInconsist  RV = 0x0F2
	UserAlreadyLoggedIn         RV = 0x100
	UserNotLoggedIn             RV = 0x101
	UserPinNotInitialized       RV = 0x102
	UserTypeInvalid             RV = 0x103
	UserAnotherAlreadyLoggedIn  RV = 0x104
	WrappedKeyInvalid           RV = 0x110
	WrappedKeyLenRange          RV = 0x112
	WrappingKeyHandleInvalid    RV = 0x113
	WrappingKeySizeRange        RV = 0x114
	WrappingKeyTypeInconsistent RV = 0x115
	RandomSeedNotSupported      RV = 0x120
	RandomNoRNG                 RV = 0x121
	DomainParamsInvalid         RV = 0x130
	CurveNotSupported           RV = 0x140
	BufferTooSmall              RV = 0x150
	SavedStateInvalid           RV = 0x160
	StateUnsaveable             RV = 0x180
	CryptokiNotInitialized      RV = 0x190
	CryptokiAlreadyInitialized  RV = 0x191
	FunctionRejected            RV = 0x200
)

var rvNames = map[RV]string{
	OK: "CKR_OK", HostMemory: "CKR_HOST_MEMORY", SlotIDInvalid: "CKR_SLOT_ID_INVALID", GeneralError: "CKR_GENERAL_ERROR",
	FunctionFailed: "CKR_FUNCTION_FAILED", ArgumentsBad: "CKR_ARGUMENTS_BAD", NoEvent: "CKR_NO_EVENT",
	AttributeReadOnly: "CKR_ATTRIBUTE_READ_ONLY", AttributeSensitive: "CKR_ATTRIBUTE_SENSITIVE", AttributeTypeInvalid: "CKR_ATTRIBUTE_TYPE_INVALID",
	AttributeValueInvalid: "CKR_ATTRIBUTE_VALUE_INVALID", ActionProhibited: "CKR_ACTION_PROHIBITED", DataInvalid: "CKR_DATA_INVALID",
	DataLenRange: "CKR_DATA_LEN_RANGE", DeviceError: "CKR_DEVICE_ERROR", DeviceMemory: "CKR_DEVICE_MEMORY", DeviceRemoved: "CKR_DEVICE_REMOVED",
	EncryptedDataInvalid: "CKR_ENCRYPTED_DATA_INVALID", EncryptedDataLenRange: "CKR_ENCRYPTED_DATA_LEN_RANGE", FunctionCanceled: "CKR_FUNCTION_CANCELED",
	FunctionRejected: "CKR_FUNCTION_REJECTED", FunctionNotSupported: "CKR_FUNCTION_NOT_SUPPORTED", KeyHandleInvalid: "CKR_KEY_HANDLE_INVALID", KeySizeRange: "CKR_KEY_SIZE_RANGE",
	KeyTypeInconsistent: "CKR_KEY_TYPE_INCONSISTENT", KeyNeeded: "CKR_KEY_NEEDED", KeyIndigestible: "CKR_KEY_INDIGESTIBLE",
	KeyFunctionNotPermitted: "CKR_KEY_FUNCTION_NOT_PERMITTED", KeyNotWrappable: "CKR_KEY_NOT_WRAPPABLE", KeyUnextractable: "CKR_KEY_UNEXTRACTABLE",
	MechanismInvalid: "CKR_MECHANISM_INVALID", MechanismParamInvalid: "CKR_MECHANISM_PARAM_INVALID", ObjectHandleInvalid: "CKR_OBJECT_HANDLE_INVALID",
	OperationActive: "CKR_OPERATION_ACTIVE", OperationNotInitialized: "CKR_OPERATION_NOT_INITIALIZED", PinIncorrect: "CKR_PIN_INCORRECT",
	PinInvalid: "CKR_PIN_INVALID", PinLenRange: "CKR_PIN_LEN_RANGE", PinLocked: "CKR_PIN_LOCKED", SessionClosed: "CKR_SESSION_CLOSED",
	SessionCount: "CKR_SESSION_COUNT", SessionHandleInvalid: "CKR_SESSION_HANDLE_INVALID", SessionParallelNotSupported: "CKR_SESSION_PARALLEL_NOT_SUPPORTED",
	SessionReadOnly: "CKR_SESSION_READ_ONLY", SessionExists: "CKR_SESSION_EXISTS", SessionReadOnlyExists: "CKR_SESSION_READ_ONLY_EXISTS", SignatureInvalid: "CKR_SIGNATURE_INVALID",
	SignatureLenRange: "CKR_SIGNATURE_LEN_RANGE", TemplateIncomplete: "CKR_TEMPLATE_INCOMPLETE", TemplateInconsistent: "CKR_TEMPLATE_INCONSISTENT",
	TokenNotPresent: "CKR_TOKEN_NOT_PRESENT", TokenWriteProtected: "CKR_TOKEN_WRITE_PROTECTED", UnwrappingKeyHandleInvalid: "CKR_UNWRAPPING_KEY_HANDLE_INVALID",
	UnwrappingKeySizeRange: "CKR_UNWRAPPING_KEY_SIZE_RANGE", UnwrappingKeyTypeInconsist: "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT",
	UserAlreadyLoggedIn: "CKR_USER_ALREADY_LOGGED_IN", UserNotLoggedIn: "CKR_USER_NOT_LOGGED_IN", UserTypeInvalid: "CKR_USER_TYPE_INVALID",
	UserAnotherAlreadyLoggedIn: "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", WrappedKeyInvalid: "CKR_WRAPPED_KEY_INVALID", WrappedKeyLenRange: "CKR_WRAPPED_KEY_LEN_RANGE",
	WrappingKeyHandleInvalid: "CKR_WRAPPING_KEY_HANDLE_INVALID", WrappingKeySizeRange: "CKR_WRAPPING_KEY_SIZE_RANGE",
	WrappingKeyTypeInconsistent: "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", RandomSeedNotSupported: "CKR_RANDOM_SEED_NOT_SUPPORTED",
	DomainParamsInvalid: "CKR_DOMAIN_PARAMS_INVALID", CurveNotSupported: "CKR_CURVE_NOT_SUPPORTED", BufferTooSmall: "CKR_BUFFER_TOO_SMALL",
	SavedStateInvalid: "CKR_SAVED_STATE_INVALID", StateUnsaveable: "CKR_STATE_UNSAVEABLE",
	CryptokiNotInitialized: "CKR_CRYPTOKI_NOT_INITIALIZED", CryptokiAlreadyInitialized: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
}

// Error is the name of the header.
func (rv RV) Error() string {
	if s, ok := rvNames[rv]; ok {
		return s
	}
	return fmt.Sprintf("CKR_0x%08x", uint64(rv))
}
