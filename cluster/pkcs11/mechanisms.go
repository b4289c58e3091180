package pkcs11

import (
	"crypto"
	_ "crypto/sha1"   // hashes that are registered
	_ "crypto/sha256" // so as to be
	_ "crypto/sha512" // found

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// mechanism is what the front door knows of a mechanism.
type mechanism struct {
	flags    uint64
	min, max uint64 // of keys, in the unit that PKCS #11 gives the mechanism
	types    []string
	name     string // of the HSM's mechanism
	hash     string // that is computed here, or that the MAC uses
	param    paramKind
}

// paramKind says what parameter a mechanism takes.
type paramKind uint8

const (
	paramNone paramKind = iota
	paramPSS
	paramOAEP
	paramIV
	paramCTR
	paramGCM
	paramEdDSA
	paramRSAAES
	paramECDH
	paramKW
	paramSP108
	paramMLDSA
	paramLength
)

var hashes = map[string]crypto.Hash{"sha1": crypto.SHA1, "sha224": crypto.SHA224, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}

// hashMechs are the numbers of hashes in parameters; mgfs those of MGF1 with them.
var (
	hashMechs = map[uint64]string{uint64(ck.SHA1): "sha1", uint64(ck.SHA224): "sha224", uint64(ck.SHA256): "sha256", uint64(ck.SHA384): "sha384", uint64(ck.SHA512): "sha512"}
	mgfs      = map[uint64]string{ck.MGF1SHA1: "sha1", ck.MGF1SHA224: "sha224", ck.MGF1SHA256: "sha256", ck.MGF1SHA384: "sha384", ck.MGF1SHA512: "sha512"}
	kdfs      = map[uint64]string{ck.KDFNull: "", ck.KDFSHA1: "sha1", ck.KDFSHA224: "sha224", ck.KDFSHA256: "sha256", ck.KDFSHA384: "sha384", ck.KDFSHA512: "sha512"}
)

const (
	signs    = ck.MechSign | ck.MechVerify
	encrypts = ck.MechEncrypt | ck.MechDecrypt
	wraps    = ck.MechWrap | ck.MechUnwrap
	recovers = ck.MechSignRecover | ck.MechVerifyRecover
	onCurve  = ck.MechECPrime | ck.MechECOID | ck.MechECUncompressed
)

var (
	rsaKeys     = []string{"rsa"}
	ecKeys      = []string{"ec"}
	edKeys      = []string{"ed25519"}
	aesKeys     = []string{"aes"}
	des3Keys    = []string{"des3"}
	mldsaKeys   = []string{"ml-dsa"}
	mlkemKeys   = []string{"ml-kem"}
	genericKeys = []string{"generic-secret"}
)

func rsaMech(flags uint64, name, hash string, p paramKind) mechanism {
	return mechanism{flags: flags, min: 2048, max: 4096, types: rsaKeys, name: name, hash: hash, param: p}
}

func ecMech(hash string) mechanism {
	return mechanism{flags: signs | onCurve, min: 224, max: 521, types: ecKeys, name: "ecdsa-data", hash: hash}
}

func aesMech(flags uint64, name string, p paramKind) mechanism {
	return mechanism{flags: flags, min: 16, max: 32, types: aesKeys, name: name, param: p}
}

func des3Mech(flags uint64, name string, p paramKind) mechanism {
	return mechanism{flags: flags, min: 24, max: 24, types: des3Keys, name: name, param: p}
}

func hmacMech(hash string) mechanism {
	return mechanism{flags: signs, min: 1, max: 800, types: genericKeys, name: "hmac", hash: hash}
}

// hmacGeneral is an HMAC that is cut to a length.
func hmacGeneral(hash string) mechanism {
	m := hmacMech(hash)
	m.param = paramLength
	return m
}

// pqMech: the sizes of a mechanism are those of public keys, in bytes.
func pqMech(flags uint64, types []string, name string, p paramKind) mechanism {
	m := mechanism{flags: flags, min: 1184, max: 1568, types: types, name: name, param: p}
	if types[0] == "ml-dsa" {
		m.min, m.max = 1312, 2592
	}
	return m
}

func digestMech(hash string) mechanism { return mechanism{flags: ck.MechDigest, hash: hash} }

// mechanisms is the table of what is offered.
var mechanisms = map[ck.Mech]mechanism{
	ck.RSAPKCSKeyPairGen: rsaMech(ck.MechGeneratePair, "", "", paramNone),
	ck.RSAX931KeyPairGen: rsaMech(ck.MechGeneratePair, "", "", paramNone),
	ck.ECKeyPairGen:      {flags: ck.MechGeneratePair | onCurve, min: 224, max: 521, types: ecKeys},
	ck.ECEdwardsPairGen:  {flags: ck.MechGeneratePair | ck.MechECOID, min: 255, max: 255, types: edKeys},
	ck.AESKeyGen:         aesMech(ck.MechGenerate, "", paramNone),
	ck.GenericSecretGen:  {flags: ck.MechGenerate, min: 1, max: 800, types: genericKeys},

	ck.MLDSAKeyPairGen: pqMech(ck.MechGeneratePair, mldsaKeys, "", paramNone), ck.MLDSA: pqMech(signs, mldsaKeys, "ml-dsa", paramMLDSA),
	ck.MLKEMKeyPairGen: pqMech(ck.MechGeneratePair, mlkemKeys, "", paramNone),
	ck.MLKEM:           pqMech(ck.MechEncapsulate|ck.MechDecapsulate, mlkemKeys, "ml-kem", paramNone),

	ck.RSAPKCS:       rsaMech(signs|encrypts|recovers|wraps, "rsa-pkcs", "", paramNone),
	ck.RSAX509:       rsaMech(signs|encrypts|recovers, "rsa-x-509", "", paramNone),
	ck.RSAPKCSOAEP:   rsaMech(encrypts|wraps, "rsa-oaep", "", paramOAEP),
	ck.RSAAESKeyWrap: rsaMech(wraps, "rsa-aes", "", paramRSAAES),
	ck.SHA1RSAPKCS:   rsaMech(signs, "rsa-pkcs", "sha1", paramNone),
	ck.SHA224RSAPKCS: rsaMech(signs, "rsa-pkcs", "sha224", paramNone),
	ck.SHA256RSAPKCS: rsaMech(signs, "rsa-pkcs", "sha256", paramNone),
	ck.SHA384RSAPKCS: rsaMech(signs, "rsa-pkcs", "sha384", paramNone),
	ck.SHA512RSAPKCS: rsaMech(signs, "rsa-pkcs", "sha512", paramNone),
	ck.RSAPKCSPSS:    rsaMech(signs, "rsa-pkcs-pss", "", paramPSS),
	ck.SHA224RSAPSS:  rsaMech(signs, "rsa-pkcs-pss", "sha224", paramPSS),
	ck.SHA256RSAPSS:  rsaMech(signs, "rsa-pkcs-pss", "sha256", paramPSS),
	ck.SHA384RSAPSS:  rsaMech(signs, "rsa-pkcs-pss", "sha384", paramPSS),
	ck.SHA512RSAPSS:  rsaMech(signs, "rsa-pkcs-pss", "sha512", paramPSS),

	ck.ECDSA: ecMech(""), ck.ECDSASHA1: ecMech("sha1"), ck.ECDSASHA224: ecMech("sha224"), ck.ECDSASHA256: ecMech("sha256"),
	ck.ECDSASHA384: ecMech("sha384"), ck.ECDSASHA512: ecMech("sha512"),
	ck.EDDSA:       {flags: signs | ck.MechECOID, min: 255, max: 255, types: edKeys, name: "ed25519", param: paramEdDSA},
	ck.ECDH1Derive: {flags: ck.MechDerive | onCurve, min: 224, max: 521, types: ecKeys, name: "ecdh", param: paramECDH},

	ck.AESECB:         aesMech(encrypts, "aes-ecb", paramNone),
	ck.AESCBC:         aesMech(encrypts, "aes-cbc", paramIV),
	ck.AESCBCPad:      aesMech(encrypts, "aes-cbc", paramIV),
	ck.AESCTR:         aesMech(encrypts, "aes-ctr", paramCTR),
	ck.AESGCM:         aesMech(encrypts|wraps, "aes-gcm", paramGCM),
	ck.CloudHSMAESGCM: aesMech(encrypts|wraps, "aes-gcm", paramGCM),
	ck.AESCMAC:        aesMech(signs, "aes-cmac", paramNone),
	ck.AESKeyWrap:     aesMech(wraps, "aes-kw", paramKW),
	ck.AESKeyWrapPad:  aesMech(wraps, "aes-kwp", paramKW),
	ck.AESKeyWrapKWP:  aesMech(wraps, "aes-kwp", paramKW),

	ck.AESKeyWrapPKCS7:      aesMech(wraps, "aes-pkcs5-pad", paramKW),
	ck.CloudHSMAESKWNoPad:   aesMech(wraps, "aes-kw", paramKW),
	ck.CloudHSMAESKWPKCS5:   aesMech(wraps, "aes-pkcs5-pad", paramKW),
	ck.CloudHSMAESKWZeroPad: aesMech(wraps, "aes-kwp", paramKW),

	ck.DES3KeyGen: des3Mech(ck.MechGenerate, "", paramNone),
	ck.DES3ECB:    des3Mech(encrypts, "des3-ecb", paramNone),
	ck.DES3CBC:    des3Mech(encrypts, "des3-cbc", paramIV),
	ck.DES3CBCPad: des3Mech(encrypts, "des3-cbc", paramIV),

	ck.SP800108Counter: {flags: ck.MechDerive, min: 1, max: 800, types: []string{"aes", "generic-secret"}, name: "sp800-108-counter", param: paramSP108},

	ck.SHA1HMAC: hmacMech("sha1"), ck.SHA224HMAC: hmacMech("sha224"), ck.SHA256HMAC: hmacMech("sha256"), ck.SHA384HMAC: hmacMech("sha384"), ck.SHA512HMAC: hmacMech("sha512"),
	ck.SHA1HMACGeneral: hmacGeneral("sha1"), ck.SHA224HMACGeneral: hmacGeneral("sha224"), ck.SHA256HMACGeneral: hmacGeneral("sha256"),
	ck.SHA384HMACGeneral: hmacGeneral("sha384"), ck.SHA512HMACGeneral: hmacGeneral("sha512"),
	ck.SHA1: digestMech("sha1"), ck.SHA224: digestMech("sha224"), ck.SHA256: digestMech("sha256"), ck.SHA384: digestMech("sha384"), ck.SHA512: digestMech("sha512"),
}
