package mech

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
)

// Class says which half of a key an object holds, in the words of the command line.
type Class string

// The classes.
const (
	ClassSecret  Class = "secret-key"
	ClassPrivate Class = "private-key"
	ClassPublic  Class = "public-key"
)

// Imported is key material that came from outside, in canonical encoding. Secret
// is raw bytes or PKCS #8 and nil for public keys; Public is SPKI and
// nil for secret keys. It prints redacted.
type Imported struct {
	Class  Class
	Spec   Spec
	Secret []byte
	Public []byte
}

// maxImport bounds what is looked at; PEM takes four thirds of DER, and room for comments.
const maxImport = 64 << 10

// ParseImport recognises a key in a file or message: PEM or DER of PKCS #8 and SPKI, PEM of
// SEC 1 ("EC PRIVATE KEY") and PKCS #1 ("RSA PRIVATE KEY", "RSA PUBLIC KEY"), and
// raw bytes for aes and generic-secret. t is the type the caller expects; raw keys need it, for
// others it may be empty, and a key of another type is [ErrKeyType]. Exactly one
// key must be there. Encrypted keys and certificates are [ErrKey] with a hint;
// the other errors are those of [ParsePrivate], [ParsePublic] and [ParseSecret].
func ParseImport(t KeyType, data []byte) (Imported, error) {
	if t != "" {
		if _, err := ParseKeyType(string(t)); err != nil {
			return Imported{}, err
		}
	}
	if len(data) > maxImport {
		return Imported{}, refuse(ErrKey, "%d bytes, at most %d are read", len(data), maxImport)
	}
	isPEM := bytes.Contains(data, []byte("-----BEGIN "))
	if t.Secret() {
		if isPEM {
			return Imported{}, refuse(ErrKey, "%s keys are imported as raw bytes, this is PEM", t)
		}
		return importSecret(t, data)
	}
	k, err := importPair(data, isPEM)
	if err != nil {
		return Imported{}, err
	}
	if t != "" && k.Spec.Type != t {
		return Imported{}, refuse(ErrKeyType, "this is an %s key, %s was asked for", k.Spec.Type, t)
	}
	return k, nil
}

func importSecret(t KeyType, raw []byte) (Imported, error) {
	k, err := ParseSecret(t, raw)
	if err != nil {
		return Imported{}, err
	}
	return Imported{Class: ClassSecret, Spec: k.Spec(), Secret: k.Raw()}, nil
}

func importPair(data []byte, isPEM bool) (Imported, error) {
	if isPEM {
		block, err := onePEM(data)
		if err != nil {
			return Imported{}, err
		}
		return importPEM(block)
	}
	return importDER(data)
}

// importDER tells PKCS #8 from SPKI by its first element: a version, or an algorithm.
func importDER(der []byte) (Imported, error) {
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err != nil || outer.Tag != asn1.TagSequence || len(outer.Bytes) == 0 {
		return Imported{}, refuse(ErrKey, "neither PEM nor DER; raw bytes need key type %s or %s", AES, GenericSecret)
	}
	if outer.Bytes[0] == asn1.TagInteger {
		return importPrivate(ParsePrivate(der))
	}
	return importPublic(ParsePublic(der))
}

func importPrivate(k *PrivateKey, err error) (Imported, error) {
	if err != nil {
		return Imported{}, err
	}
	return Imported{Class: ClassPrivate, Spec: k.Spec(), Secret: k.PKCS8(), Public: k.Public()}, nil
}

func importPublic(k *PublicKey, err error) (Imported, error) {
	if err != nil {
		return Imported{}, err
	}
	return Imported{Class: ClassPublic, Spec: k.Spec(), Public: k.SPKI()}, nil
}

// onePEM finds the only key in a PEM file. Text before and after is allowed, as openssl
// writes it, and so is the "EC PARAMETERS" block it puts before a key.
func onePEM(data []byte) (*pem.Block, error) {
	var found *pem.Block
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type == "EC PARAMETERS" {
			continue
		}
		if found != nil {
			return nil, refuse(ErrKey, "the PEM holds more than one key; import them one by one")
		}
		found = block
	}
	if found == nil || bytes.Contains(data, []byte("-----BEGIN ")) {
		return nil, refuse(ErrKey, "the PEM is damaged or holds no key")
	}
	return found, nil
}

func importPEM(block *pem.Block) (Imported, error) {
	if len(block.Headers) > 0 || block.Type == "ENCRYPTED PRIVATE KEY" {
		return Imported{}, refuse(ErrKey, "the PEM is encrypted; decrypt it first (openssl pkcs8 -in key.pem)")
	}
	switch block.Type {
	case "PRIVATE KEY":
		return importPrivate(ParsePrivate(block.Bytes))
	case "EC PRIVATE KEY":
		return importPrivate(parseSEC1(block.Bytes, nil))
	case "RSA PRIVATE KEY":
		return importPrivate(checked(parseRSAPrivate(block.Bytes)))
	case "PUBLIC KEY":
		return importPublic(ParsePublic(block.Bytes))
	case "RSA PUBLIC KEY":
		return importPublic(ParsePublic(marshal(spkiInfo{
			pkix.AlgorithmIdentifier{Algorithm: oidRSA, Parameters: asn1.NullRawValue}, bitString(block.Bytes)})))
	case "CERTIFICATE":
		return Imported{}, refuse(ErrKey, "this is a certificate; take its key first (openssl x509 -pubkey -noout -in cert.pem)")
	}
	return Imported{}, refuse(ErrKey, "PEM of type %.40q is not a key that can be read", block.Type)
}
