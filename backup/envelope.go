package backup

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"

	"github.com/hsmbackup/hsmbackup/backup/format"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// SealEnvelope encrypts the content of a recovery envelope so that threshold of
// the custodians together can read it, and fewer cannot, and names the lineage's
// own recipients of packs, whose identities follow from the content. It signs the
// whole for the lineage, so that whoever finds it can tell it from one that was made
// elsewhere. It runs inside the HSM: nobody else has the content. It returns the
// bytes to be stored.
func SealEnvelope(ctx context.Context, secret hsm.Secret, custodians []string, threshold int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	recipients, err := checkCustodians(custodians, threshold)
	if err != nil {
		return nil, err
	}
	if n := secret.Len(); n == 0 || n > format.MaxRecovery {
		return nil, fmt.Errorf("recovery envelope: content of %d bytes, at most %d", n, format.MaxRecovery)
	}
	e := format.Envelope{Threshold: threshold, Custodians: len(recipients)}
	keyring, ca, err := hsm.DecodeRecovery(secret)
	if err != nil {
		return nil, fmt.Errorf("recovery envelope: %w", err)
	}
	ca.Wipe()
	if threshold == 1 {
		if _, err := ParseRecipients(custodians); err != nil { // hybrid and others in one file
			return nil, err
		}
		e.Sealed, err = encryptTo(secret.Reveal(), recipients...)
	} else {
		err = sealShared(&e, secret, recipients)
	}
	if err == nil {
		err = describe(&e, keyring, custodians)
	}
	if err != nil {
		return nil, fmt.Errorf("recovery envelope: %w", err)
	}
	return format.EncodeEnvelope(e)
}

// describe says in clear what whoever takes snapshots has to know of the content and
// of the custodians, and signs that together with what was sealed.
func describe(e *format.Envelope, keyring *hsm.Keyring, custodians []string) (err error) {
	e.Epochs, e.Custody = keyring.Epochs(), fingerprint(custodians, e.Threshold)
	if e.PackRecipients, err = packRecipients(keyring); err != nil {
		return err
	}
	part, err := e.SignedPart()
	if err != nil {
		return err
	}
	e.Signature = keyring.Sign(hsm.PurposeEnvelope, part)
	return nil
}

// checkEnvelope verifies the signature of an envelope: hsm.ErrSignature or
// hsm.ErrLineage if an HSM of the lineage did not seal it. An envelope of older
// software has none, and nothing is known of who sealed it.
func checkEnvelope(e format.Envelope, lineage hsm.Lineage) error {
	if !e.Signed() {
		return fmt.Errorf("%w: the recovery envelope has none", hsm.ErrSignature)
	}
	part, err := e.SignedPart()
	if err != nil {
		return err
	}
	return e.Signature.Verify(lineage, hsm.PurposeEnvelope, part)
}

func sealShared(e *format.Envelope, secret hsm.Secret, recipients []Recipient) error {
	shared, shares, err := splitSecret(e.Threshold, e.Custodians)
	if err != nil {
		return err
	}
	defer clear(shared[:])
	for i, s := range shares {
		sealed, err := encryptTo(append([]byte{s.ID}, s.Value[:]...), recipients[i])
		clear(shares[i].Value[:])
		if err != nil {
			return err
		}
		e.Shares = append(e.Shares, sealed)
	}
	aead, err := sharedAEAD(shared)
	if err != nil {
		return err
	}
	e.Sealed = aead.Seal(nil, make([]byte, aead.NonceSize()), secret.Reveal(), additionalData(*e))
	return nil
}

// sharedAEAD derives the key of one envelope. The nonce may be zero: the shared
// secret is drawn for one envelope, and so the key seals once.
func sharedAEAD(shared [scalarSize]byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, shared[:], nil, "hsmbackup v1 envelope", 32)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func additionalData(e format.Envelope) []byte {
	return fmt.Appendf(nil, "hsmbackup envelope v1\x00%d of %d", e.Threshold, e.Custodians)
}

func encryptTo(plain []byte, recipients ...Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// OpenEnvelope reads the content of a recovery envelope. ErrIdentity says how
// many custodians the identities are, and how many it takes. ErrVersion,
// ErrCorrupt. The caller checks what the content says (hsm.DecodeRecovery).
func OpenEnvelope(data []byte, identities []Identity) (hsm.Secret, error) {
	e, err := format.DecodeEnvelope(data)
	if err != nil {
		return hsm.Secret{}, fmt.Errorf("recovery envelope: %w", err)
	}
	var plain []byte
	if e.Threshold == 1 {
		if plain, err = decryptWith(e.Sealed, format.MaxRecovery, identities); errors.Is(err, ErrIdentity) {
			err = fmt.Errorf("%w: 0 of the %d custodians, 1 is needed", ErrIdentity, e.Custodians)
		}
	} else {
		plain, err = openShared(e, identities)
	}
	if err != nil {
		return hsm.Secret{}, fmt.Errorf("recovery envelope: %w", err)
	}
	return hsm.NewSecret(plain), nil
}

func openShared(e format.Envelope, identities []Identity) ([]byte, error) {
	shares, err := openShares(e, identities)
	if err != nil {
		return nil, err
	}
	if len(shares) < e.Threshold {
		return nil, fmt.Errorf("%w: %d of %d custodians, %d are needed", ErrIdentity, len(shares), e.Custodians, e.Threshold)
	}
	shared, err := combineShares(shares[:e.Threshold])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer clear(shared[:])
	aead, err := sharedAEAD(shared)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), e.Sealed, additionalData(e))
	if err != nil {
		return nil, fmt.Errorf("%w: the custodians' shares do not open it", ErrCorrupt)
	}
	return plain, nil
}

// openShares opens every share that some identity fits.
func openShares(e format.Envelope, identities []Identity) ([]share, error) {
	var out []share
	for i, sealed := range e.Shares {
		b, err := decryptWith(sealed, 1+scalarSize, identities)
		if errors.Is(err, ErrIdentity) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("share %d: %w", i+1, err)
		}
		if len(b) != 1+scalarSize || int(b[0]) != i+1 {
			return nil, fmt.Errorf("%w: share %d is not what was sealed for its custodian", ErrCorrupt, i+1)
		}
		out = append(out, share{ID: b[0], Value: [scalarSize]byte(b[1:])})
	}
	return out, nil
}

func decryptWith(ciphertext []byte, limit int, identities []Identity) ([]byte, error) {
	r, err := format.Decrypt(ciphertext, identities)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrCorrupt, limit)
	}
	return b, nil
}
