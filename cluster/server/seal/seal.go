// Package seal protects an HSM's keys at rest: whoever copies the folder of an
// HSM without its seal holds nothing but ciphertext.
//
// A seal is an age recipient and identity (https://age-encryption.org/v1). The
// file seal keeps its identity beside the data and is for development only:
// it protects a backup of the store that leaves out the file, and nothing more.
package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// ErrSeal: the seal does not open what it is asked to open.
var ErrSeal = errors.New("seal does not open")

// maxSealed bounds what Open reads: a keyring, a CA and a TLS key are a few KiB.
const maxSealed = 1 << 20

// Seal closes and opens an HSM's secrets.
type Seal struct {
	kind      string
	recipient age.Recipient
	identity  age.Identity
}

// Kind returns "file", "passphrase" or "identity".
func (s Seal) Kind() string { return s.kind }

// FileName is the name of the file seal's identity inside an HSM's folder.
const FileName = "seal.key"

// NewFile makes a file seal with a fresh identity in folder, mode 0600, and
// writes it to the disk: what it seals is lost without it. It never replaces
// another: fs.ErrExist.
func NewFile(folder string) (Seal, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Seal{}, fmt.Errorf("make a file seal: %w", err)
	}
	path := filepath.Join(folder, FileName)
	if err := writeNew(path, []byte(id.String()+"\n")); err != nil {
		return Seal{}, fmt.Errorf("make a file seal: %w", err)
	}
	return Seal{kind: "file", recipient: id.Recipient(), identity: id}, nil
}

func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// OpenFile opens the file seal of folder.
func OpenFile(folder string) (Seal, error) {
	s, err := OpenIdentity(filepath.Join(folder, FileName))
	s.kind = "file"
	return s, err
}

// OpenIdentity makes a seal of the first X25519 identity in an age identity
// file.
func OpenIdentity(path string) (Seal, error) {
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return Seal{}, fmt.Errorf("%w: %w", ErrSeal, err)
	}
	defer clear(b)
	for line := range strings.Lines(string(b)) {
		if id, err := age.ParseX25519Identity(strings.TrimSpace(line)); err == nil {
			return Seal{kind: "identity", recipient: id.Recipient(), identity: id}, nil
		}
	}
	return Seal{}, fmt.Errorf("%w: %s holds no X25519 age identity", ErrSeal, path)
}

// Passphrase makes a seal of a passphrase (scrypt, RFC 7914, as age does it).
// workFactor is the base-2 logarithm of scrypt's N; 0 is age's default.
func Passphrase(p hsm.Secret, workFactor int) (Seal, error) {
	recipient, err := age.NewScryptRecipient(string(p.Reveal()))
	if err != nil {
		return Seal{}, fmt.Errorf("%w: an empty passphrase", ErrSeal)
	}
	if workFactor > 0 {
		recipient.SetWorkFactor(workFactor)
	}
	identity, err := age.NewScryptIdentity(string(p.Reveal()))
	if err != nil {
		return Seal{}, fmt.Errorf("%w: an empty passphrase", ErrSeal)
	}
	return Seal{kind: "passphrase", recipient: recipient, identity: identity}, nil
}

// Close encrypts secret.
func (s Seal) Close(secret hsm.Secret) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, s.recipient)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if _, err := w.Write(secret.Reveal()); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return out.Bytes(), nil
}

// Open decrypts what Close wrote. ErrSeal if it was closed by another seal, or
// was changed since.
func (s Seal) Open(sealed []byte) (hsm.Secret, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), s.identity)
	if err != nil {
		return hsm.Secret{}, fmt.Errorf("%w: wrong %s, or the sealed file was changed", ErrSeal, s.kind)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxSealed))
	if err != nil {
		return hsm.Secret{}, fmt.Errorf("%w: the sealed file was changed", ErrSeal)
	}
	return hsm.NewSecret(b), nil
}

// Transport is a one-time age identity (post-quantum hybrid, ML-KEM-768 with
// X25519) to which an HSM seals the keys for one that joins.
type Transport struct{ identity *age.HybridIdentity }

// NewTransport draws one.
func NewTransport() (Transport, error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return Transport{}, fmt.Errorf("make a transport identity: %w", err)
	}
	return Transport{identity: id}, nil
}

// ParseTransport reads what Text returns. ErrSeal.
func ParseTransport(text hsm.Secret) (Transport, error) {
	id, err := age.ParseHybridIdentity(string(text.Reveal()))
	if err != nil {
		return Transport{}, fmt.Errorf("%w: a transport identity does not decode", ErrSeal)
	}
	return Transport{identity: id}, nil
}

// Text returns the identity, to be kept under a seal.
func (t Transport) Text() hsm.Secret { return hsm.NewSecret([]byte(t.identity.String())) }

// Recipient returns the public half.
func (t Transport) Recipient() string { return t.identity.Recipient().String() }

// Open decrypts what SealTo sealed.
func (t Transport) Open(sealed []byte) (hsm.Secret, error) {
	return Seal{kind: "transport identity", identity: t.identity}.Open(sealed)
}

// Format keeps the identity out of every output of fmt.
func (t Transport) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[redacted transport identity]") }

// SealTo encrypts secret to the recipient of a Transport. hsm.ErrInvalid if it is
// none.
func SealTo(recipient string, secret hsm.Secret) ([]byte, error) {
	r, err := age.ParseHybridRecipient(recipient)
	if err != nil {
		return nil, fmt.Errorf("%w: the recipient of the keys does not decode", hsm.ErrInvalid)
	}
	return Seal{kind: "transport identity", recipient: r}.Close(secret)
}
