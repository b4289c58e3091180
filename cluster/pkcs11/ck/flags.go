package ck

// Flags of a slot, token and session.
const (
	SlotTokenPresent uint64 = 1 << 0

	TokenRNG            uint64 = 1 << 0
	TokenLoginRequired  uint64 = 1 << 2
	TokenPinInitialized uint64 = 1 << 3
	TokenDualCrypto     uint64 = 1 << 9
	TokenInitialized    uint64 = 1 << 10
	SessionRW           uint64 = 1 << 1
	SessionSerial       uint64 = 1 << 2
	DontBlock           uint64 = 1 << 0
	StateROPublic       uint64 = 0
	StateROUser         uint64 = 1
	StateRWPublic       uint64 = 2
	StateRWUser         uint64 = 3
	UserSO              uint64 = 0
	UserUser            uint64 = 1
	UserContextSpecific uint64 = 2
	MechHW              uint64 = 1 << 0
	MechEncrypt         uint64 = 1 << 8
	MechDecrypt         uint64 = 1 << 9
	MechDigest          uint64 = 1 << 10
	MechSign            uint64 = 1 << 11
	MechSignRecover     uint64 = 1 << 12
	MechVerify          uint64 = 1 << 13
	MechVerifyRecover   uint64 = 1 << 14
	MechGenerate        uint64 = 1 << 15
	MechGeneratePair    uint64 = 1 << 16
	MechWrap            uint64 = 1 << 17
	MechUnwrap          uint64 = 1 << 18
	MechDerive          uint64 = 1 << 19
	MechECPrime         uint64 = 1 << 20
	MechECOID           uint64 = 1 << 23
	MechECUncompressed  uint64 = 1 << 24
	MechEncapsulate     uint64 = 1 << 28
	MechDecapsulate     uint64 = 1 << 29
	HedgePreferred      uint64 = 0
	HedgeRequired       uint64 = 1
	Deterministic       uint64 = 2
	MGF1SHA1            uint64 = 1
	MGF1SHA256          uint64 = 2
	MGF1SHA384          uint64 = 3
	MGF1SHA512          uint64 = 4
	MGF1SHA224          uint64 = 5
	OAEPSourceSpecified uint64 = 1
	KDFNull             uint64 = 1
	KDFSHA1             uint64 = 2
	KDFSHA224           uint64 = 5
	KDFSHA256           uint64 = 6
	KDFSHA384           uint64 = 7
	KDFSHA512           uint64 = 8
)
