package pkcs11

import (
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// vendorKeys answers a mechanism that makes no keys here. Some vendors have their own
// for keys of one HMAC, and applications try those before CKM_GENERIC_SECRET_KEY_GEN:
// crypto11 goes on to the next only when the type of key is blamed, as CloudHSM's
// library does.
func vendorKeys(m rpc.Mechanism, attributes []rpc.Attribute, otherwise error) error {
	const vendorDefined = 0x80000000
	t, err := parseTemplate(attributes)
	if err != nil || m.Type < vendorDefined || !t.has(ck.KeyType) {
		return otherwise
	}
	switch t[ck.KeyType].Num {
	case ck.KeySHA1HMAC, ck.KeySHA224HM, ck.KeySHA256HM, ck.KeySHA384HM, ck.KeySHA512HM:
		return ck.AttributeValueInvalid
	}
	return otherwise
}
