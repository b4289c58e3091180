package hsm

import (
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"strconv"
)

// Info returns what may be shown of a key record. digest is that of its masked
// object.
func (r *Record) Info(digest Digest) KeyInfo {
	k := r.BareInfo(digest)
	for name, v := range publicAttributes(r.Core.Public) {
		if v != "" {
			k.Attributes[name] = v
		}
	}
	return k
}

// BareInfo is Info without what the public key says when it is read.
func (r *Record) BareInfo(digest Digest) KeyInfo {
	k := KeyInfo{
		Ref: r.Ref, Class: r.Core.Class, Type: r.Core.Type, Size: r.Core.Size, Curve: r.Core.Curve,
		Label: r.Text("label"), ID: hex.EncodeToString(r.Registers[attrPrefix+"id"].Value),
		CheckValue: hex.EncodeToString(r.Core.Check), Owner: r.Core.Owner, Shares: r.Shares(),
		Pair: r.Core.Pair, Token: true, Created: r.Core.CreatedAt(), Incarnation: r.Incarnation, Digest: digest,
	}
	k.Attributes = r.attributeTable(k)
	return k
}

func (r *Record) attributeTable(k KeyInfo) map[string]string {
	out := make(map[string]string, len(r.Registers)+12)
	out["class"], out["key-type"], out["token"] = string(k.Class), k.Type, strconv.FormatBool(k.Token)
	if k.Class.IsKey() {
		out["local"] = strconv.FormatBool(r.Core.Origin == MethodGenerate)
		out["always-sensitive"] = strconv.FormatBool(r.Core.SensitiveAtBirth)
		out["never-extractable"] = strconv.FormatBool(!r.Core.ExtractableAtBirth)
	}
	for i := range attributes {
		if a := &attributes[i]; a.Stored {
			if reg, ok := r.Registers[attributeRegisters[i]]; ok {
				out[a.Name] = FormatAttribute(*a, reg.Value)
			}
		}
	}
	if k.CheckValue != "" {
		out["check-value"] = k.CheckValue
	}
	if k.Curve != "" {
		out["curve"] = k.Curve
	}
	switch {
	case k.Class == ClassSecret:
		out["key-length-bytes"] = strconv.Itoa(k.Size)
	case k.Type == "rsa":
		out["modulus-size-bits"] = strconv.Itoa(k.Size)
	}
	return out
}

// SetToken marks the key as a session key or a token key.
func (k *KeyInfo) SetToken(token bool) {
	k.Token = token
	if k.Attributes == nil {
		k.Attributes = map[string]string{}
	}
	k.Attributes["token"] = strconv.FormatBool(token)
}

// publicAttributes reads what the public half (SPKI DER) tells of a key: an RSA
// key's modulus and public exponent, an elliptic curve key's point as a DER
// octet string; all in hexadecimal. What does not parse has none of them.
func publicAttributes(spki []byte) map[string]string {
	out := map[string]string{}
	var info struct {
		Algorithm struct {
			OID        asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		Key asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		return out
	}
	switch {
	case info.Algorithm.OID.Equal(oidRSA):
		var key struct {
			N *big.Int
			E int
		}
		if _, err := asn1.Unmarshal(info.Key.Bytes, &key); err == nil {
			out["modulus"] = hex.EncodeToString(key.N.Bytes())
			out["public-exponent"] = hex.EncodeToString(big.NewInt(int64(key.E)).Bytes())
		}
	case info.Algorithm.OID.Equal(oidEC), info.Algorithm.OID.Equal(oidEd25519):
		if point, err := asn1.Marshal(info.Key.Bytes); err == nil {
			out["ec-point"] = hex.EncodeToString(point)
		}
	}
	return out
}

var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}
)
