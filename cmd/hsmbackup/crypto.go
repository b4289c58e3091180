package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// cryptoVerb is a verb of crypto: what it asks the HSM for, with keys of which
// classes.
type cryptoVerb struct {
	kind    hsm.UseKind
	usage   string
	field   string // of the result in JSON
	classes []hsm.Class
	example string
}

var cryptoVerbs = map[string]cryptoVerb{
	"sign":    {hsm.UseSign, "sign with a private key", "signature", []hsm.Class{hsm.ClassPrivate}, "echo hello | hsmbackup crypto sign attr.label=web --hash sha256"},
	"verify":  {hsm.UseVerify, "verify a signature", "", []hsm.Class{hsm.ClassPublic}, "echo hello | hsmbackup crypto verify attr.label=web --signature-path web.sig"},
	"encrypt": {hsm.UseEncrypt, "encrypt", "ciphertext", []hsm.Class{hsm.ClassSecret, hsm.ClassPublic}, "echo hello | hsmbackup crypto encrypt attr.label=disk --out hello.enc"},
	"decrypt": {hsm.UseDecrypt, "decrypt", "plaintext", []hsm.Class{hsm.ClassSecret, hsm.ClassPrivate}, "hsmbackup crypto decrypt attr.label=disk --in hello.enc"},
	"mac":     {hsm.UseMAC, "make a message authentication code, or check one with --signature", "mac", []hsm.Class{hsm.ClassSecret}, "echo hello | hsmbackup crypto mac attr.label=token --hash sha256"},
}

func (p *program) cryptoCommand() *cli.Command {
	cmd := &cli.Command{Name: "crypto", Usage: "use keys"}
	for _, name := range []string{"sign", "verify", "encrypt", "decrypt", "mac"} {
		v := cryptoVerbs[name]
		cmd.Subcommands = append(cmd.Subcommands, &cli.Command{
			Name: name, Usage: v.usage, ArgsUsage: "[MECHANISM] [FILTER…]",
			Description: "Example: " + v.example + " --cluster ./east",
			Flags:       append(append(append(clusterFlags(), filterFlags()...), dataFlags()...), mechanismFlags()...),
			Action:      func(cc *cli.Context) error { return p.useKey(cc, v) },
		})
	}
	cmd.Subcommands = append(cmd.Subcommands, &cli.Command{
		Name: "random", Usage: "random bytes made inside an HSM", ArgsUsage: "BYTES", Action: p.random,
		Description: "Example: hsmbackup crypto random 32 --cluster ./east",
		Flags:       append(clusterFlags(), &cli.StringFlag{Name: "out", Aliases: []string{"path"}, Usage: "write raw bytes to `FILE`"}),
	})
	return withApproval(cmd)
}

func mechanismFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "mechanism", Usage: "rsa-pkcs, rsa-pkcs-pss, ecdsa, ed25519, ml-dsa, hmac, aes-cmac, aes-gcm, aes-cbc-pad, des3-cbc-pad, rsa-oaep; default by key type"},
		&cli.StringFlag{Name: "hash", Aliases: []string{"hash-function"}, Usage: "sha224, sha256, sha384 or sha512 (default sha256 where the mechanism hashes)"},
		&cli.BoolFlag{Name: "digest", Usage: "the data is already hashed"},
		&cli.IntFlag{Name: "salt-length", Usage: "PSS salt in `BYTES`; 0: the hash's length"},
		&cli.StringFlag{Name: "aad", Usage: "additional authenticated data, in `BASE64`"},
		&cli.StringFlag{Name: "signature", Usage: "the signature or MAC to check, in `BASE64`"},
		&cli.StringFlag{Name: "signature-path", Usage: "`FILE` with the raw signature or MAC to check"},
	}
}

// defaultMechanism picks what a key of this type is most used for.
func defaultMechanism(kind hsm.UseKind, keyType string) string {
	switch {
	case keyType == "rsa" && (kind == hsm.UseEncrypt || kind == hsm.UseDecrypt):
		return "rsa-oaep"
	case keyType == "aes" && kind == hsm.UseMAC:
		return "aes-cmac"
	}
	return map[string]string{"rsa": "rsa-pkcs-pss", "ec": "ecdsa", "ed25519": "ed25519", "ml-dsa": "ml-dsa", "aes": "aes-gcm", "des3": "des3-cbc-pad", "generic-secret": "hmac"}[keyType]
}

// defaultHash is the hash of mechanisms that need one and were given none.
func defaultHash(mechanism string) string {
	switch mechanism {
	case "rsa-pkcs", "rsa-pkcs-pss", "ecdsa", "hmac":
		return "sha256"
	}
	return ""
}

// splitWords separates a mechanism from filter terms.
func splitWords(words []string) (mechanism string, terms []string) {
	for _, w := range words {
		if strings.Contains(w, "=") {
			terms = append(terms, w)
		} else {
			mechanism = w
		}
	}
	return mechanism, terms
}

func (p *program) useKey(cc *cli.Context, v cryptoVerb) error {
	mechanism, terms := splitWords(cc.Args().Slice())
	filter, err := filterOf(cc, terms)
	if err != nil {
		return err
	}
	use, err := p.useRequest(cc, v)
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		key, err := selectKey(ctx, c, filter, v.classes...)
		if err != nil {
			return err
		}
		use.Key = key.Ref
		for _, m := range []string{cc.String("mechanism"), mechanism, defaultMechanism(use.Kind, key.Type)} {
			if use.Params.Mechanism == "" {
				use.Params.Mechanism = m
			}
		}
		if use.Params.Hash == "" && !use.Params.Digest {
			use.Params.Hash = defaultHash(use.Params.Mechanism)
		}
		out, err := c.Use(ctx, use)
		if err != nil {
			return err
		}
		return p.usedKey(cc, v, use, out)
	})
}

func (p *program) useRequest(cc *cli.Context, v cryptoVerb) (hsm.Use, error) {
	use := hsm.Use{Kind: v.kind, Params: hsm.Params{Hash: cc.String("hash"), Digest: cc.Bool("digest"), SaltLength: cc.Int("salt-length")}}
	var err error
	if use.Params.AAD, err = decodeBase64("aad", cc.String("aad")); err != nil {
		return use, err
	}
	switch {
	case cc.IsSet("signature"):
		use.Signature, err = decodeBase64("signature", cc.String("signature"))
	case cc.IsSet("signature-path"):
		use.Signature, err = p.readInput(cc.String("signature-path"))
	case v.kind == hsm.UseVerify:
		err = usagef("no signature: give --signature BASE64 or --signature-path FILE")
	}
	if err != nil {
		return use, err
	}
	if v.kind == hsm.UseMAC && use.Signature != nil {
		use.Kind = hsm.UseVerifyMAC
	}
	use.Data, err = p.input(cc)
	return use, err
}

func (p *program) usedKey(cc *cli.Context, v cryptoVerb, use hsm.Use, out []byte) error {
	doc := map[string]any{"key_reference": use.Key, "mechanism": use.Params.Mechanism}
	switch {
	case use.Kind == hsm.UseVerify || use.Kind == hsm.UseVerifyMAC:
		doc["verified"] = true
		return p.result(doc, func(w io.Writer) { fmt.Fprintln(w, "verified") })
	case use.Kind == hsm.UseDecrypt && !p.json && cc.String("out") == "":
		_, err := p.out.Write(out)
		return err
	}
	return p.output(cc, doc, v.field, out)
}

func (p *program) random(cc *cli.Context) error {
	n, err := strconv.Atoi(cc.Args().First())
	if err != nil || n < 1 {
		return usagef("how many bytes?")
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		b, err := c.Use(ctx, hsm.Use{Kind: hsm.UseRandom, Length: n})
		if err != nil {
			return err
		}
		return p.output(cc, map[string]any{"bytes": n}, "random", b)
	})
}
