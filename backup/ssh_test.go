package backup

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestSSHCustodian(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := ParseIdentityFile(pem.EncodeToMemory(block))
	if err != nil {
		t.Fatal(err)
	}
	secret := testRecovery()
	b, err := SealEnvelope(t.Context(), secret, []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub)))}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenEnvelope(b, ids); err != nil || !got.Equal(secret) {
		t.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ParseIdentityFile(pem.EncodeToMemory(locked))
	wantErr(t, err, ErrRecipient)
}
