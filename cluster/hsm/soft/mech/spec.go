package mech

import (
	"slices"
	"strings"
)

// KeyType names a family of keys.
type KeyType string

// The key types.
const (
	AES           KeyType = "aes"
	DES3          KeyType = "des3"
	GenericSecret KeyType = "generic-secret"
	RSA           KeyType = "rsa"
	EC            KeyType = "ec"
	Ed25519       KeyType = "ed25519"
	MLDSA         KeyType = "ml-dsa"
	MLKEM         KeyType = "ml-kem"
)

var keyTypes = []KeyType{AES, DES3, GenericSecret, RSA, EC, Ed25519, MLDSA, MLKEM}

// Secret says whether keys of this type are secret keys, one key rather than a pair.
func (t KeyType) Secret() bool { return t == AES || t == DES3 || t == GenericSecret }

// Asymmetric says whether keys of this type come in pairs.
func (t KeyType) Asymmetric() bool {
	return t == RSA || t == EC || t == Ed25519 || t == MLDSA || t == MLKEM
}

// ParseKeyType reads the name of a key type; other names are [ErrKeyType].
func ParseKeyType(name string) (KeyType, error) {
	if t := KeyType(name); slices.Contains(keyTypes, t) {
		return t, nil
	}
	return "", unknownKeyType(KeyType(name))
}

func unknownKeyType(t KeyType) error {
	return refuse(ErrKeyType, "%.40q; there are %s", string(t), list(keyTypes))
}

// Limits of sizes; those of CloudHSM.
const (
	maxGenericSecret = 800 // bytes
	minRSABits       = 2048
	maxRSABits       = 4096
	stepRSABits      = 256
	minRSAExponent   = 65537 // FIPS 186-5 asks for more than 2¹⁶
)

// Spec says what a key is, short of the key itself: what to generate, or what
// was found. Size is in bytes for aes, des3 and generic-secret, in bits of the modulus
// for rsa, the number of the parameter set for ml-dsa (44, 65, 87) and ml-kem (768,
// 1024), and otherwise zero. Curve is set for ec, and in specs this
// package returns also for ed25519.
type Spec struct {
	Type  KeyType `json:"type"`
	Size  int     `json:"size,omitempty"`
	Curve Curve   `json:"curve,omitempty"`
}

// Validate returns nil if keys of this kind exist here, and otherwise
// [ErrKeyType], [ErrKeySize] or [ErrCurve] with a list of what does exist.
// A curve may be given by any of its names, see [ParseCurve].
func (s Spec) Validate() error {
	switch s.Type {
	case AES, DES3, GenericSecret, RSA, MLDSA, MLKEM:
		if s.Curve != "" {
			return refuse(ErrCurve, "%s keys have no curve, %.40q was given", s.Type, string(s.Curve))
		}
		return s.validateSize()
	case EC, Ed25519:
		if s.Size != 0 {
			return refuse(ErrKeySize, "%s keys are chosen by curve, not by size; size %d was given", s.Type, s.Size)
		}
		return s.validateCurve()
	}
	return unknownKeyType(s.Type)
}

func (s Spec) validateSize() error {
	n := s.Size
	switch s.Type {
	case AES:
		if n != 16 && n != 24 && n != 32 {
			return refuse(ErrKeySize, "aes key of %d bytes; there are 16, 24 and 32", n)
		}
	case DES3:
		if n != des3Bytes {
			return refuse(ErrKeySize, "des3 key of %d bytes; there are %d", n, des3Bytes)
		}
	case GenericSecret:
		if n < 1 || n > maxGenericSecret {
			return refuse(ErrKeySize, "generic secret of %d bytes; there are 1 to %d", n, maxGenericSecret)
		}
	case MLDSA:
		if n != 44 && n != 65 && n != 87 {
			return refuse(ErrKeySize, "ml-dsa parameter set %d; there are 44, 65 and 87", n)
		}
	case MLKEM:
		if n != 768 && n != 1024 {
			return refuse(ErrKeySize, "ml-kem parameter set %d; there are 768 and 1024", n)
		}
	case RSA:
		if n < minRSABits || n > maxRSABits || n%stepRSABits != 0 {
			return refuse(ErrKeySize, "rsa key of %d bits; there are %d to %d in steps of %d", n, minRSABits, maxRSABits, stepRSABits)
		}
	}
	return nil
}

func (s Spec) validateCurve() error {
	if s.Type == Ed25519 {
		if s.Curve != "" && s.Curve != CurveEd25519 {
			return refuse(ErrCurve, "ed25519 keys have curve %q or none, %.40q was given", CurveEd25519, string(s.Curve))
		}
		return nil
	}
	c, err := ParseCurve(string(s.Curve))
	if err != nil {
		return err
	}
	if c == CurveEd25519 {
		return refuse(ErrCurve, "%q is not a curve of ec keys; ask for key type %q", c, Ed25519)
	}
	return nil
}

// canonical returns s, which must be valid, with the curve's canonical name.
func (s Spec) canonical() Spec {
	if s.Type == EC || s.Type == Ed25519 {
		s.Curve, _ = ParseCurve(string(s.Curve))
	}
	if s.Type == Ed25519 {
		s.Curve = CurveEd25519
	}
	return s
}

// Curve is the canonical name of an elliptic curve.
type Curve string

// The curves. CurveEd25519 is the one of [Ed25519] keys, the others are of [EC] keys.
const (
	Secp224r1    Curve = "secp224r1"
	Secp256r1    Curve = "secp256r1"
	Secp384r1    Curve = "secp384r1"
	Secp521r1    Curve = "secp521r1"
	Secp256k1    Curve = "secp256k1"
	CurveEd25519 Curve = "ed25519"
)

var curves = []Curve{Secp224r1, Secp256r1, Secp384r1, Secp521r1, Secp256k1, CurveEd25519}

var curveAliases = map[string]Curve{
	"p-224":      Secp224r1,
	"p-256":      Secp256r1,
	"prime256v1": Secp256r1,
	"p-384":      Secp384r1,
	"p-521":      Secp521r1,
}

// ParseCurve reads the name of a curve, canonical or alias ("prime256v1",
// "P-256", …), in any letter case; other names are [ErrCurve].
func ParseCurve(name string) (Curve, error) {
	lower := strings.ToLower(name)
	if c := Curve(lower); slices.Contains(curves, c) {
		return c, nil
	}
	if c, ok := curveAliases[lower]; ok {
		return c, nil
	}
	return "", refuse(ErrCurve, "%.40q; there are %s", name, list(curves))
}

// list writes names as "a, b and c".
func list[T ~string](names []T) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i > 0 && i == len(names)-1:
			b.WriteString(" and ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}
