package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fxamacker/cbor/v2"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/server/seal"
)

// sealedSecrets is what the seal protects, as CBOR.
type sealedSecrets struct {
	Version  uint64 `cbor:"1,keyasint"`
	Recovery []byte `cbor:"2,keyasint"`           // hsm.EncodeRecovery: keyring and CA
	TLSKey   []byte `cbor:"3,keyasint"`           // PEM
	Sealing  uint64 `cbor:"4,keyasint,omitempty"` // epoch of the masking key that seals; 0: the highest
}

const sealedVersion = 1

// secrets is an HSM's part of sealedSecrets, opened.
type secrets struct {
	keyring *hsm.Keyring
	ca      hsm.Secret
	tlsKey  hsm.Secret
}

func closeSecrets(s seal.Seal, k *hsm.Keyring, ca, tlsKey hsm.Secret) ([]byte, error) {
	recovery := hsm.EncodeRecovery(k, ca)
	defer recovery.Wipe()
	plain, err := cbor.Marshal(sealedSecrets{Version: sealedVersion, Recovery: recovery.Reveal(), TLSKey: tlsKey.Reveal(), Sealing: k.Epoch()})
	if err != nil {
		return nil, fmt.Errorf("seal the HSM's keys: they do not encode")
	}
	defer clear(plain)
	return s.Close(hsm.NewSecret(plain))
}

func openSecrets(folder string, s seal.Seal) (*secrets, error) {
	path := filepath.Join(folder, sealedFile)
	sealed, err := hsm.ReadSmallFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, folder, err)
	}
	plain, err := s.Open(sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer plain.Wipe()
	return parseSecrets(plain, path)
}

// parseSecrets decodes what the seal of the file at path protects. What it
// returns shares no memory with plain. ErrFolder, hsm.ErrCorrupt.
func parseSecrets(plain hsm.Secret, path string) (*secrets, error) {
	var v sealedSecrets
	if err := cbor.Unmarshal(plain.Reveal(), &v); err != nil {
		return nil, fmt.Errorf("%w: %s does not decode", ErrFolder, path) // the error might quote keys
	}
	defer clear(v.Recovery)
	if v.Version != sealedVersion {
		return nil, fmt.Errorf("%w: %s is of version %d, this software knows %d; use a newer one", ErrFolder, path, v.Version, sealedVersion)
	}
	keyring, ca, err := hsm.DecodeRecovery(hsm.NewSecret(v.Recovery))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if v.Sealing != 0 {
		if keyring, err = keyring.Sealing(v.Sealing); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return &secrets{keyring: keyring, ca: ca, tlsKey: hsm.NewSecret(v.TLSKey)}, nil
}

// wipe forgets the keys. Nothing that was opened with them may be in use.
func (s *secrets) wipe() {
	if s != nil {
		s.ca.Wipe()
		s.tlsKey.Wipe()
	}
}

// lockPath makes the file at path if need be and takes an exclusive lock on it,
// which ends with the file or the process. what is locked is for the error,
// ErrFolder.
func lockPath(path, what string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, what, err)
	}
	err = lockExclusive(f)
	if errors.Is(err, errors.ErrUnsupported) {
		f.Close()
		return nil, fmt.Errorf("%w %s: %w", ErrFolder, what, err)
	}
	if err != nil || !isAt(f, path) {
		f.Close()
		return nil, fmt.Errorf("%w %s is in use by another process; stop that one first, or wait for it", ErrFolder, what)
	}
	return f, nil
}

// isAt tells whether f is still what lies at path: whoever held the lock before
// may have removed it.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
