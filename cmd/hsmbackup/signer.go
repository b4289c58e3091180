package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
)

// readPrivateKey reads the key of a signer: PKCS #8, PKCS #1 or SEC 1 in PEM.
func readPrivateKey(path string) (crypto.Signer, error) {
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, usagef("%s: not a private key in PEM", path)
	}
	defer clear(block.Bytes)
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	return nil, usagef("%s: want an RSA or EC private key, PEM, without a passphrase", path)
}

// readPublicKey reads a public key in PEM, as DER.
func readPublicKey(path string) ([]byte, error) {
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, usagef("%s: not a public key in PEM (PUBLIC KEY)", path)
	}
	return block.Bytes, nil
}

// signerCommand is a verb of user that gives the caller a key, or takes one away.
func (p *program) signerCommand(name, usage string, kind hsm.ChangeKind, use hsm.SignerUse) *cli.Command {
	register := &cli.Command{
		Name: "register", Usage: "register a key of your own: at once with --key, or in two steps that leave the private key where it is", Flags: append(clusterFlags(),
			&cli.StringFlag{Name: "key", Usage: "`FILE` with the private key, PEM: RSA or EC; only its public half is sent"},
			&cli.StringFlag{Name: "public-key", Usage: "`FILE` with the public key, PEM"},
			&cli.StringFlag{Name: "token", Usage: "write what the key is to sign to `FILE`, for quorum token-sign sign, and do no more"},
			&cli.StringFlag{Name: "signed-token", Usage: "the signed `FILE`"}),
		Description: "Example: hsmbackup user " + name + " token-sign register --key alice.pem --cluster ./east",
		Action:      func(cc *cli.Context) error { return p.registerSigner(cc, kind, use) },
	}
	deregister := &cli.Command{
		Name: "deregister", Usage: "take a user's key away, as an admin", ArgsUsage: "NAME", Flags: append(clusterFlags(), &cli.StringFlag{Name: "role", Value: string(hsm.RoleCryptoUser), Usage: "admin or crypto-user"}),
		Description: "Example: hsmbackup user " + name + " token-sign deregister alice --cluster ./east",
		Action:      func(cc *cli.Context) error { return p.changeUser(cc, kind, false) },
	}
	return &cli.Command{Name: name, Usage: usage, Subcommands: []*cli.Command{
		{Name: "token-sign", Usage: "with an RSA or EC key", Subcommands: []*cli.Command{register, deregister}},
	}}
}

func (p *program) changeQuorumCommand() *cli.Command {
	return p.signerCommand("change-quorum", "the key that a user approves tokens with", hsm.ChangeUserQuorum, hsm.SignQuorum)
}

func (p *program) changeMFACommand() *cli.Command {
	return p.signerCommand("change-mfa", "the key that a user logs in with, beside the password", hsm.ChangeUserMFA, hsm.SignLogin)
}

func (p *program) registerSigner(cc *cli.Context, kind hsm.ChangeKind, use hsm.SignerUse) error {
	l, ok, err := p.readLogin(anySide)
	switch {
	case err != nil:
		return err
	case !ok:
		return usagef("no login: users register keys of their own; set HSMBACKUP_PIN")
	}
	name, err := hsm.CanonicalUserName(l.name)
	if err != nil {
		return err
	}
	pr, err := profile.Find(cc.String("cluster"))
	if err != nil {
		return err
	}
	change := hsm.Change{Kind: kind, User: name}
	message := func() []byte { return hsm.RegistrationMessage(use, pr.Lineage, name, change.Public) }
	switch {
	case cc.IsSet("key"):
		if change.Public, change.Proof, err = provenKey(cc.String("key"), message, &change); err != nil {
			return err
		}
	case cc.IsSet("public-key") && (cc.IsSet("token") || cc.IsSet("signed-token")):
		if change.Public, err = readPublicKey(cc.String("public-key")); err != nil {
			return err
		}
		if !cc.IsSet("signed-token") {
			return p.writeRegistration(cc.String("token"), message(), nil)
		}
		if change.Proof, err = readProof(cc.String("signed-token"), message()); err != nil {
			return err
		}
	default:
		return usagef("give --key FILE, or --public-key FILE with --token FILE to write what is to be signed, and then with --signed-token FILE")
	}
	return p.withNamed(cc, cc.String("cluster"), who{login: &l}, func(ctx context.Context, c *cluster.Cluster) error {
		if _, err := c.Change(ctx, change); err != nil {
			return err
		}
		doc := map[string]any{"username": name, "strategy": "token-sign", "use": use}
		return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "%s: key registered\n", name) })
	})
}

// provenKey reads a private key, and shows possession of it.
func provenKey(path string, message func() []byte, into *hsm.Change) (public, proof []byte, err error) {
	key, err := readPrivateKey(path)
	if err != nil {
		return nil, nil, err
	}
	if into.Public, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return nil, nil, err
	}
	proof, err = hsm.SignWith(key, message())
	return into.Public, proof, err
}

// readProof reads the signature of a file that must hold this message.
func readProof(path string, message []byte) ([]byte, error) {
	b, err := hsm.ReadSmallFile(path)
	if err != nil {
		return nil, err
	}
	said, proof, err := hsm.ParseRegistrationFile(b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	case string(said) != string(message):
		return nil, usagef("%s: it is for another user, key or lineage", path)
	case len(proof) == 0:
		return nil, usagef("%s: it is not signed yet; sign it with quorum token-sign sign", path)
	}
	return proof, nil
}

func (p *program) writeRegistration(path string, message, signature []byte) error {
	b, err := hsm.EncodeRegistrationFile(message, signature)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	doc := map[string]any{"path": path, "signed": len(signature) > 0}
	return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "registration written to %s\n", path) })
}

func (p *program) signRegistration(path string, key crypto.Signer, message []byte) error {
	signature, err := hsm.SignWith(key, message)
	if err != nil {
		return err
	}
	return p.writeRegistration(path, message, signature)
}

func strategy(has bool) []string {
	if has {
		return []string{"token-sign"}
	}
	return []string{}
}

func yes(v bool) string { return map[bool]string{true: "yes", false: ""}[v] }
