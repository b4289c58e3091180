package ck

// Unavailable is CK_UNAVAILABLE_INFORMATION.
const Unavailable = ^uint64(0)

// The object classes.
const (
	ObjectData        uint64 = 0
	ObjectCertificate uint64 = 1
	ObjectPublicKey   uint64 = 2
	ObjectPrivateKey  uint64 = 3
	ObjectSecretKey   uint64 = 4
)

// The key types.
const (
	KeyRSA       uint64 = 0x00
	KeyEC        uint64 = 0x03
	KeyGeneric   uint64 = 0x10
	KeyDES3      uint64 = 0x15
	KeyAES       uint64 = 0x1F
	KeySHA1HMAC  uint64 = 0x28
	KeySHA256HM  uint64 = 0x2B
	KeySHA384HM  uint64 = 0x2C
	KeySHA512HM  uint64 = 0x2D
	KeySHA224HM  uint64 = 0x2E
	KeyECEdwards uint64 = 0x40
	KeyMLKEM     uint64 = 0x49
	KeyMLDSA     uint64 = 0x4A
)

// CertificateX509 is the only type of certificate here.
const CertificateX509 uint64 = 0

// Attr is CK_ATTRIBUTE_TYPE.
type Attr uint32

// The attributes.
const (
	Class               Attr = 0x000
	Token               Attr = 0x001
	Private             Attr = 0x002
	Label               Attr = 0x003
	UniqueID            Attr = 0x004
	Application         Attr = 0x010
	Value               Attr = 0x011
	ObjectID            Attr = 0x012
	CertificateType     Attr = 0x080
	Issuer              Attr = 0x081
	SerialNumber        Attr = 0x082
	Trusted             Attr = 0x086
	CertificateCategory Attr = 0x087
	JavaMIDPDomain      Attr = 0x088
	URL                 Attr = 0x089
	HashOfSubjectKey    Attr = 0x08A
	HashOfIssuerKey     Attr = 0x08B
	NameHashAlgorithm   Attr = 0x08C
	CheckValue          Attr = 0x090
	KeyType             Attr = 0x100
	Subject             Attr = 0x101
	ID                  Attr = 0x102
	Sensitive           Attr = 0x103
	Encrypt             Attr = 0x104
	Decrypt             Attr = 0x105
	Wrap                Attr = 0x106
	Unwrap              Attr = 0x107
	Sign                Attr = 0x108
	SignRecover         Attr = 0x109
	Verify              Attr = 0x10A
	VerifyRecover       Attr = 0x10B
	Derive              Attr = 0x10C
	StartDate           Attr = 0x110
	EndDate             Attr = 0x111
	Modulus             Attr = 0x120
	ModulusBits         Attr = 0x121
	PublicExponent      Attr = 0x122
	PrivateExponent     Attr = 0x123
	Prime1              Attr = 0x124
	Prime2              Attr = 0x125
	Exponent1           Attr = 0x126
	Exponent2           Attr = 0x127
	Coefficient         Attr = 0x128
	PublicKeyInfo       Attr = 0x129
	PrimeBits           Attr = 0x133
	SubPrimeBits        Attr = 0x134
	ValueBits           Attr = 0x160
	ValueLen            Attr = 0x161
	Extractable         Attr = 0x162
	Local               Attr = 0x163
	NeverExtractable    Attr = 0x164
	AlwaysSensitive     Attr = 0x165
	KeyGenMechanism     Attr = 0x166
	Modifiable          Attr = 0x170
	Copyable            Attr = 0x171
	Destroyable         Attr = 0x172
	ECParams            Attr = 0x180
	ECPoint             Attr = 0x181
	SecondaryAuth       Attr = 0x200
	AuthPinFlags        Attr = 0x201
	AlwaysAuthenticate  Attr = 0x202
	WrapWithTrusted     Attr = 0x210
	HWFeatureType       Attr = 0x300
	ResetOnInit         Attr = 0x301
	HasReset            Attr = 0x302
	PixelX              Attr = 0x400
	PixelY              Attr = 0x401
	Resolution          Attr = 0x402
	CharRows            Attr = 0x403
	CharColumns         Attr = 0x404
	Color               Attr = 0x405
	BitsPerPixel        Attr = 0x406
	MechanismType       Attr = 0x500
	ParameterSet        Attr = 0x61D
	Encapsulate         Attr = 0x633
	Decapsulate         Attr = 0x634
	Seed                Attr = 0x637
	WrapTemplate        Attr = 0x40000211
	UnwrapTemplate      Attr = 0x40000212
	DeriveTemplate      Attr = 0x40000213
	AllowedMechanisms   Attr = 0x40000600
)

// Kind is how the value of an attribute is encoded on the wire.
type Kind uint8

// The kinds. Whatever is not listed is bytes.
const (
	KindBytes Kind = iota
	KindBool
	KindNumber
	KindAttributes
	KindMechanisms
	KindDate
)

var kinds = func() map[Attr]Kind {
	m := map[Attr]Kind{StartDate: KindDate, EndDate: KindDate, AllowedMechanisms: KindMechanisms}
	for _, a := range []Attr{WrapTemplate, UnwrapTemplate, DeriveTemplate} {
		m[a] = KindAttributes
	}
	for _, a := range []Attr{Token, Private, Trusted, Sensitive, Encrypt, Decrypt, Wrap, Unwrap, Sign, SignRecover, Verify, VerifyRecover, Derive,
		Extractable, Local, NeverExtractable, AlwaysSensitive, Modifiable, Copyable, SecondaryAuth, AlwaysAuthenticate, WrapWithTrusted,
		ResetOnInit, HasReset, Color} {
		m[a] = KindBool
	}
	for _, a := range []Attr{Class, CertificateType, CertificateCategory, JavaMIDPDomain, KeyType, ModulusBits, PrimeBits, SubPrimeBits, ValueBits,
		ValueLen, KeyGenMechanism, AuthPinFlags, HWFeatureType, PixelX, PixelY, Resolution, CharRows, CharColumns, BitsPerPixel, MechanismType} {
		m[a] = KindNumber
	}
	return m
}()

// Kind tells how the attribute's value is encoded.
func (a Attr) Kind() Kind { return kinds[a] }
