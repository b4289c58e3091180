package rpc

import (
	"slices"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// noParameter are the mechanisms that p11-kit sends without a parameter, as
// ranges; the dead ones too, so that a body is still read to its end.
var noParameter = [][2]ck.Mech{
	{0x0000, 0x0008}, {0x000A, 0x000C}, {0x0010, 0x0012}, {0x0020, 0x0020}, {0x0030, 0x0030}, {0x0040, 0x0042}, {0x0046, 0x0046},
	{0x0048, 0x0049}, {0x004C, 0x004D}, {0x0100, 0x0101}, {0x0103, 0x0103}, {0x0110, 0x0111}, {0x0120, 0x0121}, {0x0123, 0x0123},
	{0x0130, 0x0132}, {0x0134, 0x0134}, {0x0138, 0x0138}, {0x0140, 0x0141}, {0x0143, 0x0143}, {0x0200, 0x0201}, {0x0210, 0x0211},
	{0x0220, 0x0221}, {0x0230, 0x0231}, {0x0240, 0x0241}, {0x0250, 0x0251}, {0x0255, 0x0256}, {0x0260, 0x0261}, {0x0270, 0x0271},
	{0x0300, 0x0301}, {0x0303, 0x0303}, {0x0310, 0x0311}, {0x0313, 0x0313}, {0x0320, 0x0321}, {0x0323, 0x0323}, {0x0330, 0x0330},
	{0x0340, 0x0341}, {0x0343, 0x0343}, {0x0350, 0x0350}, {0x0370, 0x0370}, {0x0374, 0x0374}, {0x0380, 0x0380}, {0x0390, 0x0396},
	{0x1000, 0x1001}, {0x1010, 0x1010}, {0x1030, 0x1031}, {0x1040, 0x1046}, {0x1080, 0x1081}, {0x1083, 0x1083}, {0x108A, 0x108A},
	{0x2000, 0x2000},
}

// Fields of parameter structures: n a CK_ULONG, b bytes, K the items of a KDF.
const (
	fieldsPSS    = "nnn"   // hash, mgf, salt length
	fieldsOAEP   = "nnnb"  // hash, mgf, source, source data
	fieldsECDH   = "nbb"   // kdf, shared data, public data
	fieldsIV     = "b"     //
	fieldsCTR    = "nb"    // counter bits, counter block
	fieldsGCM    = "bnbn"  // iv, iv bits, aad, tag bits
	fieldsLength = "n"     // of the MAC
	fieldsRSAAES = "nnnnb" // aes key bits, then as OAEP
)

// fields is what p11-kit has an encoder for.
var fields = map[ck.Mech]string{
	ck.RSAPKCSPSS: fieldsPSS, ck.SHA1RSAPSS: fieldsPSS, ck.SHA224RSAPSS: fieldsPSS, ck.SHA256RSAPSS: fieldsPSS, ck.SHA384RSAPSS: fieldsPSS, ck.SHA512RSAPSS: fieldsPSS,
	ck.RSAPKCSOAEP: fieldsOAEP, ck.ECDH1Derive: fieldsECDH, ck.AESCTR: fieldsCTR, ck.AESGCM: fieldsGCM, 0x21: "b",
	ck.AESCBC: fieldsIV, ck.AESCBCPad: fieldsIV, 0x1089: fieldsIV, 0x2104: fieldsIV, 0x2105: fieldsIV, 0x2106: fieldsIV, 0x2107: fieldsIV, 0x2108: fieldsIV,
	0x122: fieldsIV, 0x125: fieldsIV, 0x133: fieldsIV, 0x136: fieldsIV, 0x150: fieldsIV, 0x152: fieldsIV, 0x153: fieldsIV,
	ck.SHA1HMACGeneral: fieldsLength, ck.SHA224HMACGeneral: fieldsLength, ck.SHA256HMACGeneral: fieldsLength, ck.SHA384HMACGeneral: fieldsLength,
	ck.SHA512HMACGeneral: fieldsLength, 0x4A: fieldsLength, 0x4E: fieldsLength, 0x1084: fieldsLength, ck.AESCMACGeneral: fieldsLength,
	0x135: fieldsLength, 0x137: fieldsLength,
}

// moduleFields is what libhsmbackup-pkcs11.so sends beyond that.
var moduleFields = map[ck.Mech]string{
	0x63: fieldsPSS, 0x64: fieldsPSS, 0x65: fieldsPSS, 0x67: fieldsPSS,
	0x1051: fieldsECDH, ck.AESKeyWrap: fieldsIV, ck.AESKeyWrapPad: fieldsIV, ck.AESKeyWrapKWP: fieldsIV, ck.AESKeyWrapPKCS7: fieldsIV,
	ck.CloudHSMAESKWNoPad: fieldsIV, ck.CloudHSMAESKWPKCS5: fieldsIV, ck.CloudHSMAESKWZeroPad: fieldsIV,
	ck.CloudHSMAESGCM: fieldsGCM, 0x1088: "nbbn", ck.RSAAESKeyWrap: fieldsRSAAES, 0x1053: "nnb", ck.EDDSA: "nb",
	0x402A: "nnnnbnb", 0x402B: "nnnnbnb", ck.SP800108Counter: "nK", 0x3AD: "nKb", 0x3AE: "nK",
	0x360: "n", 0x362: "b", 0x363: "b", 0x364: "b", 0x1104: "b", 0x1105: "bb", 0x4021: "bb",
	ck.MLDSA: "nb", 0x1F: "nbn", 0x23: "nb", 0x24: "nb", 0x25: "nb", 0x26: "nb", 0x27: "nb", 0x28: "nb", 0x29: "nb", 0x2A: "nb", 0x2B: "nb", 0x2C: "nb",
}

func takesNone(m ck.Mech) bool {
	return slices.ContainsFunc(noParameter, func(r [2]ck.Mech) bool { return r[0] <= m && m <= r[1] })
}

// Passes tells whether a client of this form passes a mechanism on. The stock clients
// answer CKR_MECHANISM_INVALID by themselves for all that is not on their list.
func (f Form) Passes(m ck.Mech) bool { return f == FormModule || fields[m] != "" || takesNone(m) }

// mechanism reads the value M.
func (r *reader) mechanism(form Form) Mechanism {
	m := Mechanism{Type: ck.Mech(r.u32())}
	switch {
	case m.Cancel():
	case form == FormModule:
		r.moduleParameter(&m)
	case takesNone(m.Type):
		if form == FormOld && r.u32() != ^uint32(0) {
			r.fail("a parameter where mechanism 0x%x has none", uint32(m.Type))
		}
	case fields[m.Type] == "":
		r.fail("mechanism 0x%x, which no client passes", uint32(m.Type))
	case form == FormOld || r.flag():
		m.Has = true
		r.fields(&m, fields[m.Type])
	}
	return m
}

func (r *reader) moduleParameter(m *Mechanism) {
	switch kind := r.u8(); kind {
	case 0:
	case 1:
		f := fields[m.Type]
		if f == "" {
			f = moduleFields[m.Type]
		}
		if f == "" {
			r.fail("fields of mechanism 0x%x, which has none", uint32(m.Type))
		}
		m.Has = true
		r.fields(m, f)
	case 2:
		m.Has, m.Raw = true, r.bytes()
	default:
		r.fail("parameter of kind %d", kind)
	}
}

func (r *reader) fields(m *Mechanism, list string) {
	for _, f := range list {
		switch f {
		case 'n':
			m.Nums = append(m.Nums, r.u64())
		case 'b':
			m.Bufs = append(m.Bufs, r.bytes())
		case 'K':
			r.kdfItems(m)
		}
	}
}

// kdfItems reads a number of items into Nums, and then for each its type, into Nums,
// and its value, into Bufs.
func (r *reader) kdfItems(m *Mechanism) {
	n := r.u64()
	if n > maxItems {
		r.fail("%d items of a KDF, at most %d", n, maxItems)
		return
	}
	m.Nums = append(m.Nums, n)
	for range n {
		m.Nums, m.Bufs = append(m.Nums, r.u64()), append(m.Bufs, r.bytes())
	}
}
