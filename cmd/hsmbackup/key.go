package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

func (p *program) keyCommand() *cli.Command {
	one := func(name, usage, example string, action cli.ActionFunc, flags ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: "[FILTER…]", Action: action,
			Description: "Example: hsmbackup key " + example + " --cluster ./east",
			Flags:       append(append(clusterFlags(), filterFlags()...), flags...),
		}
	}
	user := &cli.StringFlag{Name: "username", Aliases: []string{"user"}, Usage: "the crypto `USER`", Required: true}
	return withApproval(&cli.Command{Name: "key", Usage: "make, find, change and move keys", Subcommands: []*cli.Command{
		p.generateCommand(), p.importCommand(), p.unwrapCommand(), p.deriveCommand(),
		one("wrap", "wrap a key under another one", "wrap attr.label=payload --wrapping-key attr.label=kek --mechanism aes-kwp --out key.bin", p.wrapKey,
			&cli.StringSliceFlag{Name: "wrapping-key", Aliases: []string{"wrapping-filter"}, Usage: "`FILTER` of the wrapping key"},
			wrapMechanism(), hashFlag(), aadFlag(), outFlag()),
		one("export-public", "print the public key, PEM", "export-public attr.label=web", p.exportPublic, outFlag()),
		one("list", "list the keys this login may see", "list attr.key-type=aes", p.listKeys,
			&cli.IntFlag{Name: "max-items", Usage: "print at most `N`; the total counts all"}),
		one("show", "show one key", "show key-reference=0x0123456789abcdef", p.showKey),
		one("where", "tell which HSMs hold a key", "where attr.label=web", p.whereKey),
		p.extractMaskedCommand(), p.insertMaskedCommand(),
		one("set", "change an attribute", "set attr.label=old --attribute label=new", p.setKey,
			&cli.StringSliceFlag{Name: "attribute", Usage: "`NAME=VALUE`"}),
		one("share", "let another crypto user use a key", "share attr.label=web --username bob", p.shareKey(hsm.ChangeShare), user),
		one("unshare", "stop sharing a key", "unshare attr.label=web --username bob", p.shareKey(hsm.ChangeUnshare), user),
		one("destroy", "destroy a key for ever, on every HSM", "destroy key-reference=0x0123456789abcdef", p.destroyKey),
	}})
}

func hashFlag() cli.Flag {
	return &cli.StringFlag{Name: "hash", Aliases: []string{"hash-function"}, Usage: "hash of OAEP or of the derivation (default sha256 where the mechanism has one)"}
}

func aadFlag() cli.Flag {
	return &cli.StringFlag{Name: "aad", Usage: "additional authenticated data of AES-GCM, in `BASE64`"}
}

func outFlag() cli.Flag {
	return &cli.StringFlag{Name: "out", Aliases: []string{"path"}, Usage: "write to `FILE`"}
}

func wrapMechanism() cli.Flag {
	return &cli.StringFlag{Name: "mechanism", Value: "aes-kwp", Usage: "aes-kwp, aes-kw, aes-pkcs5-pad, aes-gcm, rsa-oaep or rsa-aes"}
}

// creationFlags are common to all ways of making a key.
func creationFlags() []cli.Flag {
	return append(append(clusterFlags(), durabilityFlags()...),
		&cli.StringFlag{Name: "label", Usage: "the key's `LABEL`"},
		&cli.StringFlag{Name: "id", Usage: "the key's id, in `HEX`"},
		&cli.IntFlag{Name: "size", Usage: "bytes of an AES or generic secret key (32 unless said), bits of an RSA key (3072), parameter set of ML-DSA (44, 65, 87; 65 unless said) or ML-KEM (768, 1024; 768)"},
		&cli.StringFlag{Name: "curve", Usage: "secp256r1 (unless said), secp384r1, secp521r1, secp256k1 or secp224r1"},
		&cli.BoolFlag{Name: "session", Usage: "a session key: on one HSM, gone with the session"},
		&cli.StringSliceFlag{Name: "attribute", Usage: "`NAME=VALUE`, such as encrypt=true, or unwrap-template=extractable=false,sign=true (commas between; \\ before a comma of a value)"},
		&cli.StringSliceFlag{Name: "public-attribute", Usage: "`NAME=VALUE` of a pair's public key"},
		&cli.StringSliceFlag{Name: "share", Usage: "crypto `USER` who may use the key too"},
		&cli.IntFlag{Name: "use-key-quorum-value", Aliases: []string{"use-private-key-quorum-value"}, Usage: "`N` of its users approve every use of the secret or private key"},
		&cli.IntFlag{Name: "manage-key-quorum-value", Aliases: []string{"manage-private-key-quorum-value"}, Usage: "`N` of its users approve every wrap, unwrap, copy and change of it"})
}

// durabilityFlags raise the policy for one creation.
func durabilityFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "min-copies", Aliases: []string{"min-srv", "min_srv"}, Usage: "at least `N` HSMs must hold the key; the larger of this and the cluster's policy applies"},
		&cli.IntFlag{Name: "min-zones", Usage: "in at least `N` zones; the larger of this and the cluster's policy applies"},
		&cli.StringFlag{Name: "timeout", Usage: "give up after this `TIME`, such as 5s (a plain number: seconds); the key is then not created"},
	}
}

// callPolicy is what the flags of one creation ask for beyond the policy in force:
// KMU's -min_srv and -timeout.
func callPolicy(cc *cli.Context) (cluster.Policy, error) {
	p := cluster.Policy{MinCopies: cc.Int("min-copies"), MinZones: cc.Int("min-zones")}
	if cc.IsSet("min-copies") && p.MinCopies < 1 {
		return p, usagef("--min-copies %d: want at least 1", p.MinCopies)
	}
	text := cc.String("timeout")
	if text == "" {
		return p, nil
	}
	d, err := time.ParseDuration(text)
	if n, numberErr := strconv.Atoi(text); numberErr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d <= 0 || d > time.Hour {
		return p, usagef("--timeout %q: want a time of up to an hour, such as 5s", text)
	}
	p.Timeout = d
	return p, nil
}

func creation(cc *cli.Context, method hsm.Method) (hsm.CreateRequest, error) {
	r := hsm.CreateRequest{
		Method: method, Token: !cc.Bool("session"), Type: keyType(cc.Args().First()), Size: cc.Int("size"), Curve: cc.String("curve"),
		Shares: cc.StringSlice("share"), Params: hsm.Params{Mechanism: cc.String("mechanism"), Hash: cc.String("hash")},
	}
	var err error
	if r.Attributes, err = attributesOf(cc.StringSlice("attribute")); err != nil {
		return r, err
	}
	for _, name := range []string{"label", "id"} {
		if cc.IsSet(name) {
			r.Attributes[name] = cc.String(name)
		}
	}
	for _, name := range []string{"use-key-quorum-value", "manage-key-quorum-value"} {
		if cc.IsSet(name) {
			r.Attributes[name] = strconv.Itoa(cc.Int(name))
		}
	}
	r.Public, err = attributesOf(cc.StringSlice("public-attribute"))
	if method == hsm.MethodGenerate {
		fillSize(&r)
	}
	return r, err
}

// fillSize gives a key to be generated the usual size or curve of its type where none was asked for.
func fillSize(r *hsm.CreateRequest) {
	if r.Size == 0 {
		r.Size = map[string]int{"aes": 32, "des3": 24, "generic-secret": 32, "rsa": 3072, "ml-dsa": 65, "ml-kem": 768}[r.Type]
	}
	if r.Type == "ec" && r.Curve == "" {
		r.Curve = "secp256r1"
	}
}

// keyType accepts common other names of key types.
func keyType(s string) string {
	switch t := strings.ToLower(s); t {
	case "hmac", "generic", "secret":
		return "generic-secret"
	case "3des", "des-ede3", "triple-des":
		return "des3"
	case "ecc", "ecdsa":
		return "ec"
	default:
		return t
	}
}

func attributesOf(pairs []string) (map[string]string, error) {
	out := map[string]string{}
	for _, pair := range pairs {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, usagef("attribute %q: want NAME=VALUE", pair)
		}
		if _, err := hsm.LookupAttribute(name); err != nil {
			return nil, err
		}
		out[name] = value
	}
	return out, nil
}

func (p *program) generateCommand() *cli.Command {
	return &cli.Command{
		Name: "generate", Usage: "generate a key or key pair", ArgsUsage: "TYPE",
		Description: "TYPE is aes, des3 (not in FIPS mode), generic-secret, rsa, ec, ed25519, ml-dsa (--size 44, 65 or 87) or ml-kem (--size 768 or 1024).\n\nExample: hsmbackup key generate ec --curve secp256r1 --label web --attribute sign=true --cluster ./east",
		Flags:       creationFlags(),
		Action: func(cc *cli.Context) error {
			r, err := creation(cc, hsm.MethodGenerate)
			if err != nil {
				return err
			}
			if r.Type == "" {
				return usagef("which type? aes, des3, generic-secret, rsa, ec, ed25519, ml-dsa or ml-kem")
			}
			return p.createKey(cc, r, nil)
		},
	}
}

func (p *program) importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "import a key: PKCS #8 or SPKI (PEM or DER), or raw bytes of a secret key", ArgsUsage: "[TYPE]",
		Description: "Example: hsmbackup key import aes --in key.bin --label disk --cluster ./east",
		Flags:       append(creationFlags(), &cli.StringFlag{Name: "in", Usage: "`FILE` with the key; without it standard input"}),
		Action: func(cc *cli.Context) error {
			r, err := creation(cc, hsm.MethodImport)
			if err != nil {
				return err
			}
			b, err := p.readInput(cc.String("in"))
			if err != nil {
				return err
			}
			r.Data = hsm.NewSecret(b)
			defer r.Data.Wipe()
			return p.createKey(cc, r, nil)
		},
	}
}

func (p *program) unwrapCommand() *cli.Command {
	return &cli.Command{
		Name: "unwrap", Usage: "unwrap a key that was wrapped under a key of the cluster", ArgsUsage: "[TYPE]",
		Description: "Example: hsmbackup key unwrap aes --unwrapping-key attr.label=kek --mechanism aes-kwp --in key.bin --label payload --cluster ./east",
		Flags: append(append(creationFlags(), dataFlags()[:2]...), wrapMechanism(), hashFlag(), aadFlag(),
			&cli.StringSliceFlag{Name: "unwrapping-key", Aliases: []string{"unwrapping-filter"}, Usage: "`FILTER` of the unwrapping key"},
			&cli.StringFlag{Name: "key-type-class", Usage: "secret-key or private-key; default: as the data is"}),
		Action: func(cc *cli.Context) error {
			r, err := creation(cc, hsm.MethodUnwrap)
			if err != nil {
				return err
			}
			if r.Params.AAD, err = decodeBase64("aad", cc.String("aad")); err != nil {
				return err
			}
			b, err := p.input(cc)
			if err != nil {
				return err
			}
			r.Class, r.Data = hsm.Class(cc.String("key-type-class")), hsm.NewSecret(b)
			return p.createKey(cc, r, baseKey("unwrapping-key", hsm.ClassSecret, hsm.ClassPrivate))
		},
	}
}

func (p *program) deriveCommand() *cli.Command {
	return &cli.Command{
		Name: "derive", Usage: "derive a secret key by ECDH, ML-KEM or SP 800-108", ArgsUsage: "TYPE",
		Description: "Example: hsmbackup key derive aes --size 32 --base-key attr.label=ecdh --mechanism ecdh --peer peer.pem --label session --cluster ./east",
		Flags: append(creationFlags(), hashFlag(),
			&cli.StringSliceFlag{Name: "base-key", Usage: "`FILTER` of the base key"},
			&cli.StringFlag{Name: "mechanism", Value: "ecdh", Usage: "ecdh (with --hash through the X9.63 KDF) sp800-108-counter, or ml-kem (--peer is the ciphertext)"},
			&cli.StringFlag{Name: "peer", Usage: "`FILE` with the other side's public key"},
			&cli.StringFlag{Name: "info", Usage: "shared info or label of the derivation, in `BASE64`"},
			&cli.StringFlag{Name: "context", Usage: "context of the derivation, in `BASE64`"}),
		Action: func(cc *cli.Context) error {
			r, err := creation(cc, hsm.MethodDerive)
			if err != nil {
				return err
			}
			r.Params.SharedInfo, err = decodeBase64("info", cc.String("info"))
			if err != nil {
				return err
			}
			if r.Params.Context, err = decodeBase64("context", cc.String("context")); err != nil {
				return err
			}
			if cc.IsSet("peer") {
				if r.Params.Peer, err = p.readPublic(cc.String("peer")); err != nil {
					return err
				}
			}
			return p.createKey(cc, r, baseKey("base-key", hsm.ClassSecret, hsm.ClassPrivate))
		},
	}
}

// readPublic reads a public key, PEM or DER.
func (p *program) readPublic(path string) ([]byte, error) {
	b, err := p.readInput(path)
	if block, _ := pem.Decode(b); block != nil {
		return block.Bytes, err
	}
	return b, err
}

// baseKey finds the key that a creation starts from.
func baseKey(flag string, classes ...hsm.Class) func(context.Context, *cluster.Cluster, *cli.Context, *hsm.CreateRequest) error {
	return func(ctx context.Context, c *cluster.Cluster, cc *cli.Context, r *hsm.CreateRequest) error {
		k, err := selectFlag(ctx, c, cc, flag, classes...)
		r.Key = k.Ref
		return err
	}
}

func (p *program) createKey(cc *cli.Context, r hsm.CreateRequest, prepare func(context.Context, *cluster.Cluster, *cli.Context, *hsm.CreateRequest) error) error {
	policy, err := callPolicy(cc)
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		if prepare != nil {
			if err := prepare(ctx, c, cc, &r); err != nil {
				return err
			}
		}
		made, err := c.Create(ctx, r, policy)
		if err != nil {
			return err
		}
		v := p.viewMade(ctx, c, made.Keys[0])
		if len(made.Keys) > 1 {
			public := p.viewMade(ctx, c, made.Keys[1])
			v.Public = &public
		}
		return p.result(v, v.print)
	})
}

// viewMade shows a new key with the HSMs that hold it now: Create returns once
// enough do, and the others follow within moments.
func (p *program) viewMade(ctx context.Context, c *cluster.Cluster, k cluster.Key) keyView {
	if now, err := c.Key(ctx, k.Ref); err == nil && len(now.Coverage) > len(k.Coverage) {
		k = now
	}
	return viewKey(k.KeyInfo, k.Coverage)
}

func (p *program) wrapKey(cc *cli.Context) error {
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		kek, err := selectFlag(ctx, c, cc, "wrapping-key", hsm.ClassSecret, hsm.ClassPublic)
		if err != nil {
			return err
		}
		aad, err := decodeBase64("aad", cc.String("aad"))
		if err != nil {
			return err
		}
		b, err := c.Use(ctx, hsm.Use{Kind: hsm.UseWrap, Key: kek.Ref, Payload: k.Ref, Params: hsm.Params{Mechanism: cc.String("mechanism"), Hash: cc.String("hash"), AAD: aad}})
		if err != nil {
			return err
		}
		return p.output(cc, map[string]any{"payload_key_reference": k.Ref, "wrapping_key_reference": kek.Ref}, "wrapped_key_data", b)
	}, hsm.ClassSecret, hsm.ClassPrivate)
}

func (p *program) exportPublic(cc *cli.Context) error {
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		der, err := c.Use(ctx, hsm.Use{Kind: hsm.UsePublic, Key: k.Ref})
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
		if path := cc.String("out"); path != "" {
			if err := os.WriteFile(path, text, 0o644); err != nil {
				return err
			}
		}
		doc := map[string]any{"key_reference": k.Ref, "public_key": string(text)}
		return p.result(doc, func(w io.Writer) { w.Write(text) })
	}, hsm.ClassPublic)
}

// withKey opens the cluster and selects one key.
func (p *program) withKey(cc *cli.Context, f func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error, classes ...hsm.Class) error {
	filter, err := filterOf(cc, cc.Args().Slice())
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		k, err := selectKey(ctx, c, filter, classes...)
		if err != nil {
			return err
		}
		return f(ctx, c, k)
	})
}

func (p *program) showKey(cc *cli.Context) error {
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		return p.showRef(ctx, c, k.Ref)
	})
}

// showRef shows a key as all HSMs hold it now.
func (p *program) showRef(ctx context.Context, c *cluster.Cluster, ref hsm.KeyRef) error {
	k, err := c.Key(ctx, ref)
	if err != nil {
		return err
	}
	v := viewKey(k.KeyInfo, k.Coverage)
	return p.result(v, v.print)
}

func (p *program) whereKey(cc *cli.Context) error {
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		have, missing, err := c.Where(ctx, k.Ref)
		if err != nil {
			return err
		}
		doc := map[string]any{"key_reference": k.Ref, "coverage": notNil(have), "missing": notNil(missing)}
		return p.result(doc, func(w io.Writer) {
			fmt.Fprintf(w, "on       %s\nmissing  %s\n", joinIDs(have), joinIDs(missing))
		})
	})
}

func (p *program) listKeys(cc *cli.Context) error {
	filter, err := filterOf(cc, cc.Args().Slice())
	if err != nil {
		return err
	}
	return p.withCluster(cc, func(ctx context.Context, c *cluster.Cluster) error {
		views, total, most := []keyView{}, 0, cc.Int("max-items")
		for k, err := range c.Keys(ctx, filter) {
			if err != nil {
				return err
			}
			if total++; most <= 0 || total <= most {
				views = append(views, viewKey(k.KeyInfo, nil))
			}
		}
		return p.result(map[string]any{"keys": listed(views), "total": total}, func(w io.Writer) { printKeys(w, views, total) })
	})
}

// listed leaves out the coverage, which key list does not ask for.
func listed(views []keyView) []map[string]any {
	out := make([]map[string]any, len(views))
	for i, v := range views {
		out[i] = map[string]any{
			"key_reference": v.Ref, "class": v.Class, "key_type": v.Type, "label": v.Label, "id": v.ID,
			"check_value": v.CheckValue, "attributes": v.Attributes, "owner": v.Owner, "shares": v.Shares,
		}
	}
	return out
}

func printKeys(w io.Writer, views []keyView, total int) {
	rows := make([][]string, len(views))
	for i, v := range views {
		rows[i] = []string{v.Ref.String(), string(v.Class), v.Type, v.CheckValue, v.Owner, v.Label}
	}
	table(w, []string{"KEY REFERENCE", "CLASS", "TYPE", "CHECK VALUE", "OWNER", "LABEL"}, rows)
	fmt.Fprintf(w, "%d of %d keys\n", len(views), total)
}

func (p *program) setKey(cc *cli.Context) error {
	attrs, err := attributesOf(cc.StringSlice("attribute"))
	if err != nil {
		return err
	}
	if len(attrs) == 0 {
		return usagef("nothing to set: give --attribute NAME=VALUE")
	}
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		for name, value := range attrs {
			if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeAttribute, Ref: k.Ref, Name: name, Value: value}); err != nil {
				return err
			}
		}
		return p.showRef(ctx, c, k.Ref)
	})
}

func (p *program) shareKey(kind hsm.ChangeKind) cli.ActionFunc {
	return func(cc *cli.Context) error {
		return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
			if _, err := c.Change(ctx, hsm.Change{Kind: kind, Ref: k.Ref, User: cc.String("username")}); err != nil {
				return err
			}
			return p.showRef(ctx, c, k.Ref)
		}, hsm.ClassSecret, hsm.ClassPrivate)
	}
}

// destroyKey destroys one key. A pair's other half is a key of its own.
func (p *program) destroyKey(cc *cli.Context) error {
	return p.withKey(cc, func(ctx context.Context, c *cluster.Cluster, k cluster.Key) error {
		if _, err := c.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref}); err != nil {
			return err
		}
		doc := map[string]any{"key_reference": k.Ref, "destroyed": true, "time": time.Now().UTC().Format(time.RFC3339)}
		return p.result(doc, func(w io.Writer) { fmt.Fprintf(w, "key %s is destroyed\n", k.Ref) })
	})
}
