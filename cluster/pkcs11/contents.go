package pkcs11

import (
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
)

// material reads class, type and contents of an object that comes in clear.
func (t template) material(r *hsm.CreateRequest) error {
	var data []byte
	var err error
	switch t[ck.Class].Num {
	case ck.ObjectData:
		r.Class, data = hsm.ClassData, t.bytes(ck.Value)
	case ck.ObjectCertificate:
		r.Class, data = hsm.ClassCertificate, t.bytes(ck.Value)
		switch {
		case t.has(ck.CertificateType) && t[ck.CertificateType].Num != ck.CertificateX509:
			return ck.AttributeValueInvalid
		case !t.has(ck.CertificateType) || len(data) == 0:
			return ck.TemplateIncomplete
		}
	case ck.ObjectSecretKey:
		data, err = t.secretMaterial(r)
	case ck.ObjectPublicKey:
		data, err = t.pairMaterial(r, hsm.ClassPublic)
	case ck.ObjectPrivateKey:
		data, err = t.pairMaterial(r, hsm.ClassPrivate)
	default:
		return ck.AttributeValueInvalid
	}
	r.Data = hsm.NewSecret(append([]byte{}, data...))
	return err
}

func (t template) secretMaterial(r *hsm.CreateRequest) (data []byte, err error) {
	r.Class = hsm.ClassSecret
	if r.Type, err = t.keyType(""); err != nil {
		return nil, err
	}
	data = t.bytes(ck.Value)
	switch {
	case !secretType(r.Type):
		return nil, ck.TemplateInconsistent
	case !t.has(ck.Value):
		return nil, ck.TemplateIncomplete
	case t.has(ck.ValueLen) && t[ck.ValueLen].Num != uint64(len(data)):
		return nil, ck.TemplateInconsistent
	}
	return data, nil
}

// pairMaterials make SPKI or PKCS #8 of one half of a key pair, by class and type.
var pairMaterials = map[hsm.Class]map[string]func(t template, r *hsm.CreateRequest) ([]byte, error){
	hsm.ClassPublic:  {"rsa": template.rsaPublic, "ec": template.ecPublic, "ed25519": template.ecPublic, "ml-dsa": template.pqPublic, "ml-kem": template.pqPublic},
	hsm.ClassPrivate: {"rsa": template.rsaPrivate, "ec": template.ecPrivate, "ed25519": template.ecPrivate, "ml-dsa": template.pqPrivate, "ml-kem": template.pqPrivate},
}

func (t template) pairMaterial(r *hsm.CreateRequest, class hsm.Class) (data []byte, err error) {
	r.Class = class
	if r.Type, err = t.keyType(""); err != nil {
		return nil, err
	}
	read := pairMaterials[class][r.Type]
	if read == nil {
		return nil, ck.TemplateInconsistent
	}
	return read(t, r)
}

func (t template) rsaPublic(*hsm.CreateRequest) ([]byte, error) {
	modulus, exponent := t.bytes(ck.Modulus), t.bytes(ck.PublicExponent)
	if len(modulus) == 0 || len(exponent) == 0 {
		return nil, ck.TemplateIncomplete
	}
	return rsaPublic(modulus, exponent)
}

func (t template) rsaPrivate(*hsm.CreateRequest) ([]byte, error) { return rsaPrivate(t.bytes) }

func (t template) ecPublic(r *hsm.CreateRequest) ([]byte, error) {
	return t.onCurve(r.Type, ck.ECPoint, ecPublic)
}

func (t template) ecPrivate(r *hsm.CreateRequest) ([]byte, error) {
	return t.onCurve(r.Type, ck.Value, ecPrivate)
}

// onCurve reads the curve, and what the key is on it: a point, or a number.
func (t template) onCurve(keyType string, value ck.Attr, make func(curve string, value []byte) ([]byte, error)) ([]byte, error) {
	params := t.bytes(ck.ECParams)
	if len(params) == 0 {
		return nil, ck.TemplateIncomplete
	}
	curve, ok := curveOf(params)
	switch {
	case !ok:
		return nil, unknownCurve(params)
	case (curve == "ed25519") != (keyType == "ed25519"):
		return nil, ck.CurveNotSupported
	case len(t.bytes(value)) == 0:
		return nil, ck.TemplateIncomplete
	}
	return make(curve, t.bytes(value))
}
