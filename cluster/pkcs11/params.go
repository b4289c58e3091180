package pkcs11

import (
	"bytes"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// paramsOf turns a mechanism with its parameter into the HSM's. CKR_MECHANISM_INVALID if
// it does not do what is asked (a flag of CK_MECHANISM_INFO), CKR_MECHANISM_PARAM_INVALID.
func paramsOf(m rpc.Mechanism, does uint64) (mechanism, hsm.Params, error) {
	known, ok := mechanisms[m.Type]
	if !ok || known.flags&does == 0 {
		return known, hsm.Params{}, ck.MechanismInvalid
	}
	p := hsm.Params{Mechanism: known.name}
	read, ok := paramReaders[known.param]
	switch {
	case !ok && m.Has:
		return known, p, ck.MechanismParamInvalid
	case ok && !read(m, &p, known):
		return known, p, ck.MechanismParamInvalid
	}
	return known, p, nil
}

// paramReaders read parameters; they return false for what makes no sense.
var paramReaders = map[paramKind]func(m rpc.Mechanism, p *hsm.Params, known mechanism) bool{
	paramPSS: readPSS, paramOAEP: readOAEP, paramRSAAES: readRSAAES, paramECDH: readECDH, paramEdDSA: readEdDSA, paramKW: readKW, paramSP108: readSP108,
	paramMLDSA: readMLDSA, paramLength: readLength,
	paramIV: func(m rpc.Mechanism, p *hsm.Params, known mechanism) bool {
		if !m.Has || len(m.Bufs) != 1 || len(m.Bufs[0]) != blockOf(known.name) {
			return false
		}
		p.IV = m.Bufs[0]
		return true
	},
	paramCTR: func(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
		if !m.Has || len(m.Bufs) != 1 || len(m.Bufs[0]) != 16 || m.Nums[0] < 1 || m.Nums[0] > 128 {
			return false
		}
		p.IV, p.CounterBits = m.Bufs[0], int(m.Nums[0])
		return true
	},
	paramGCM: readGCM,
}

// readGCM: CKM_CLOUDHSM_AES_GCM makes its nonce inside and puts it before the
// ciphertext, whatever nonce is given.
func readGCM(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has || len(m.Bufs) != 2 {
		return false
	}
	tag := m.Nums[1]
	p.AAD = m.Bufs[1]
	if m.Type == ck.CloudHSMAESGCM {
		return tag == 128
	}
	p.IV, p.TagLength = m.Bufs[0], int(tag/8)
	standard := len(p.IV) == 12
	return len(p.IV) >= 1 && len(p.IV) <= 256 && tag%8 == 0 && (tag == 128 || standard && tag >= 96 && tag < 128)
}

// checkIV refuses to seal with AES-GCM under an IV of twelve zeros that came through a
// stock client. CloudHSM's applications leave zeros where they find the HSM's IV
// afterwards; that client carries no IV back, and all they seal would have one IV,
// which gives the key away. Our module has an IV made before it asks.
func (a *App) checkIV(m rpc.Mechanism, does uint64) error {
	if m.Type != ck.AESGCM || does&(ck.MechEncrypt|ck.MechWrap) == 0 || a.form == rpc.FormModule || !bytes.Equal(m.Bufs[0], make([]byte, 12)) {
		return nil
	}
	a.log.Warn("AES-GCM refused: the IV is zeros, and p11-kit's client does not bring one back that the HSM makes; bring an IV, or use libhsmbackup-pkcs11.so")
	return ck.MechanismParamInvalid
}

func readPSS(m rpc.Mechanism, p *hsm.Params, known mechanism) bool {
	if !m.Has || len(m.Nums) != 3 {
		return false
	}
	hash := hashMechs[m.Nums[0]]
	p.Hash, p.SaltLength, p.Digest = hash, int(m.Nums[2]), true
	// One hash for the data and the mask; SHA-1 and no salt are not offered.
	return hash != "" && hash != "sha1" && mgfs[m.Nums[1]] == hash && (known.hash == "" || known.hash == hash) && m.Nums[2] > 0 && m.Nums[2] <= 512
}

func readOAEP(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has || len(m.Nums) != 3 {
		return false
	}
	return readLabel(m.Nums, m.Bufs, p)
}

func readRSAAES(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	return m.Has && len(m.Nums) == 4 && m.Nums[0] == 256 && readLabel(m.Nums[1:], m.Bufs, p)
}

// readLabel reads the fields of CK_RSA_PKCS_OAEP_PARAMS.
func readLabel(nums []uint64, bufs [][]byte, p *hsm.Params) bool {
	p.Hash = hashMechs[nums[0]]
	if p.Hash == "" || mgfs[nums[1]] != p.Hash || len(bufs) != 1 {
		return false
	}
	p.AAD = bufs[0]
	return nums[2] == ck.OAEPSourceSpecified || nums[2] == 0 && len(bufs[0]) == 0
}

func readECDH(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has || len(m.Nums) != 1 || len(m.Bufs) != 2 {
		return false
	}
	hash, ok := kdfs[m.Nums[0]]
	p.Hash, p.SharedInfo, p.Peer = hash, m.Bufs[0], m.Bufs[1]
	return ok && len(p.Peer) > 0 && (hash != "" || len(p.SharedInfo) == 0)
}

func readEdDSA(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has {
		return true
	}
	if len(m.Nums) != 1 || len(m.Bufs) != 1 || len(m.Bufs[0]) > 0 {
		return false
	}
	if m.Nums[0] != 0 {
		p.Mechanism = "ed25519ph"
	}
	return true
}

// readMLDSA reads CK_SIGN_ADDITIONAL_CONTEXT; without it the signature is hedged and
// has no context.
func readMLDSA(m rpc.Mechanism, p *hsm.Params, known mechanism) bool {
	if !m.Has {
		return true
	}
	if len(m.Nums) != 1 || len(m.Bufs) != 1 || len(m.Bufs[0]) > 255 || m.Nums[0] > ck.Deterministic {
		return false
	}
	p.Context = m.Bufs[0]
	if m.Nums[0] == ck.Deterministic {
		p.Mechanism = known.name + "-deterministic"
	}
	return true
}

// readLength reads CK_MAC_GENERAL_PARAMS, the length of the MAC.
func readLength(m rpc.Mechanism, p *hsm.Params, known mechanism) bool {
	if !m.Has || len(m.Nums) != 1 || m.Nums[0] < 1 || m.Nums[0] > uint64(hashes[known.hash].Size()) {
		return false
	}
	p.TagLength = int(m.Nums[0])
	return true
}

// The default initial values of RFC 3394 and RFC 5649; there are no others here.
var defaultIVs = [][]byte{nil, {0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}, {0xa6, 0x59, 0x59, 0xa6}}

func readKW(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has {
		return true
	}
	iv := m.Raw
	if len(m.Bufs) == 1 {
		iv = m.Bufs[0]
	}
	want := defaultIVs[1]
	if p.Mechanism == "aes-kwp" {
		want = defaultIVs[2]
	}
	return len(iv) == 0 || bytes.Equal(iv, want)
}

// readSP108 takes the one form the HSM computes: a counter of 32 bits, a label, a zero
// byte, a context, and the length in bits as 32 bits, all big-endian (NIST SP 800-108,
// section 4.1). Label or context may be missing.
func readSP108(m rpc.Mechanism, p *hsm.Params, _ mechanism) bool {
	if !m.Has || len(m.Nums) < 2 || int(m.Nums[1]) != len(m.Bufs) || len(m.Nums) != 2+len(m.Bufs) {
		return false
	}
	kinds, items := m.Nums[2:], m.Bufs
	n := len(kinds)
	if n != 5 || kinds[0] != kdfIteration || kinds[1] != kdfBytes || kinds[2] != kdfBytes || kinds[3] != kdfBytes || kinds[4] != kdfLength {
		return false
	}
	p.Hash = map[uint64]string{uint64(ck.SHA1HMAC): "sha1", uint64(ck.SHA224HMAC): "sha224", uint64(ck.SHA256HMAC): "sha256",
		uint64(ck.SHA384HMAC): "sha384", uint64(ck.SHA512HMAC): "sha512"}[m.Nums[0]]
	p.SharedInfo, p.Context = items[1], items[3]
	return p.Hash != "" && bytes.Equal(items[2], []byte{0}) && bytes.Equal(items[0], ulongs(0, 32)) && bytes.Equal(items[4], ulongs(1, 0, 32))
}

// The types of a KDF's items (CK_PRF_DATA_TYPE).
const (
	kdfIteration = 1
	kdfLength    = 3
	kdfBytes     = 4
)

// ulongs is numbers of 64 bits, one after the other.
func ulongs(numbers ...uint64) (b []byte) {
	for _, n := range numbers {
		for shift := 56; shift >= 0; shift -= 8 {
			b = append(b, byte(n>>shift))
		}
	}
	return b
}
