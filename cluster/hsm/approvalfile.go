package hsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
)

// The files that carry tokens to those who sign them, and back (QUORUM.md, section
// 3): JSON in CloudHSM's fields, bytes in base64.

// MaxApprovalFile bounds such a file: 16 signatures of RSA-4096 take 15 KiB.
const MaxApprovalFile = 64 << 10

const approvalVersion = "2.0"

type approvalFile struct {
	Version      string              `json:"version"`
	Service      Service             `json:"service"`
	KeyReference *KeyRef             `json:"key_reference,omitempty"`
	ApprovalData []byte              `json:"approval_data"`
	Token        []byte              `json:"token"` // SHA-256 of approval_data
	Signatures   []approvalSignature `json:"signatures"`
}

type approvalSignature struct {
	Username  string `json:"username"`
	Role      Role   `json:"role"`
	Signature []byte `json:"signature"`
}

// EncodeApprovalFile makes the contents of a file with a token and its signatures.
func EncodeApprovalFile(a Approval) ([]byte, error) {
	t, err := ParseQuorumToken(a.Token)
	if err != nil {
		return nil, err
	}
	digest := TokenDigest(a.Token)
	f := approvalFile{Version: approvalVersion, Service: t.Service, ApprovalData: a.Token, Token: digest[:], Signatures: []approvalSignature{}}
	role := RoleAdmin
	if t.Service.OfKey() {
		f.KeyReference, role = &t.Key, RoleCryptoUser
	}
	for _, s := range a.Signatures {
		f.Signatures = append(f.Signatures, approvalSignature{Username: s.User, Role: role, Signature: s.Signature})
	}
	return encodeFile(f)
}

// ParseApprovalFile reads such a file. What it says for people to read must be what
// the token says: ErrInvalid otherwise, and for anything else.
func ParseApprovalFile(b []byte) (Approval, error) {
	var f approvalFile
	if err := decodeFile(b, &f); err != nil {
		return Approval{}, fmt.Errorf("%w: not a quorum token file: %w", ErrInvalid, err)
	}
	t, err := ParseQuorumToken(f.ApprovalData)
	digest := TokenDigest(f.ApprovalData)
	var key KeyRef
	if f.KeyReference != nil {
		key = *f.KeyReference
	}
	switch {
	case err != nil:
		return Approval{}, err
	case f.Version != approvalVersion:
		return Approval{}, fmt.Errorf("%w: quorum token file of version %s: want %s", ErrInvalid, quote(f.Version), approvalVersion)
	case f.Service != t.Service || key != t.Key || !bytes.Equal(f.Token, digest[:]):
		return Approval{}, fmt.Errorf("%w: the quorum token file was changed: it is not what its token says", ErrInvalid)
	case len(f.Signatures) > MaxSignatures:
		return Approval{}, fmt.Errorf("%w: %d signatures in a quorum token file, at most %d", ErrInvalid, len(f.Signatures), MaxSignatures)
	}
	a := Approval{Token: f.ApprovalData}
	for _, s := range f.Signatures {
		a.Signatures = append(a.Signatures, ApprovalSignature{User: s.Username, Signature: s.Signature})
	}
	return a, nil
}

type registrationFile struct {
	Version string              `json:"version"`
	Tokens  []registrationToken `json:"tokens"`
}

type registrationToken struct {
	ApprovalData []byte `json:"approval_data"` // RegistrationMessage
	Unsigned     []byte `json:"unsigned"`      // SHA-256 of approval_data
	Signed       []byte `json:"signed"`
}

// EncodeRegistrationFile makes the contents of a file with a message to be signed, or
// signed, by whoever registers a key.
func EncodeRegistrationFile(message, signature []byte) ([]byte, error) {
	digest := sha256.Sum256(message)
	return encodeFile(registrationFile{Version: approvalVersion, Tokens: []registrationToken{{message, digest[:], signature}}})
}

// ParseRegistrationFile reads such a file. ErrInvalid.
func ParseRegistrationFile(b []byte) (message, signature []byte, err error) {
	var f registrationFile
	if err := decodeFile(b, &f); err != nil {
		return nil, nil, fmt.Errorf("%w: not a registration file: %w", ErrInvalid, err)
	}
	if f.Version != approvalVersion || len(f.Tokens) != 1 {
		return nil, nil, fmt.Errorf("%w: registration file of version %s with %d tokens: want version %s and one", ErrInvalid, quote(f.Version), len(f.Tokens), approvalVersion)
	}
	t := f.Tokens[0]
	if digest := sha256.Sum256(t.ApprovalData); !bytes.Equal(digest[:], t.Unsigned) || !bytes.HasPrefix(t.ApprovalData, []byte(registrationMagic)) {
		return nil, nil, fmt.Errorf("%w: the registration file was changed: it does not fit together", ErrInvalid)
	}
	return t.ApprovalData, t.Signed, nil
}

func encodeFile(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}

// decodeFile decodes one JSON document without fields that do not exist.
func decodeFile(b []byte, into any) error {
	if len(b) > MaxApprovalFile {
		return fmt.Errorf("it has %d bytes, at most %d", len(b), MaxApprovalFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("there is something after the document")
	}
	return nil
}
