package hsmtest

import (
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// Multiply makes token keys by the million for measurements: AES-256, EC P-256
// and RSA-2048 private keys in equal parts, of about 0.6, 0.9 and 2 KiB masked.
// They are real keys that work, of a handful of different materials, each under
// its own reference and label. The objects come in ascending order of reference,
// in a few seconds per million and core. It panics if the machine cannot make keys.
func Multiply(k *hsm.Keyring, owner string, n int) []hsm.MaskedObject {
	clock := hsm.NewClock(hsm.NewHSMID(), time.Now)
	templates := slices.Collect(templates(clock, owner))
	refs := make([]hsm.KeyRef, n)
	for i := range refs {
		refs[i] = hsm.NewKeyRef()
	}
	slices.Sort(refs)
	out := make([]hsm.MaskedObject, n)
	var wg sync.WaitGroup
	parts := runtime.GOMAXPROCS(0)
	for part := range parts {
		wg.Go(func() {
			for i := part; i < n; i += parts {
				out[i] = multiplied(k, clock, templates[i%len(templates)], refs[i], i)
			}
		})
	}
	wg.Wait()
	return out
}

func multiplied(k *hsm.Keyring, clock *hsm.Clock, template *hsm.Record, ref hsm.KeyRef, i int) hsm.MaskedObject {
	r := *template
	r.Ref, r.Registers, r.Hidden = ref, maps.Clone(template.Registers), map[string]hsm.Register{}
	r.Set(hsm.AttributeRegister("label"), fmt.Appendf(nil, "customer-%06d/%s", i/len(keyTypes), r.Core.Type), clock.Next())
	r.Birth = must(k.Birth(&r))
	return must(k.Mask(&r))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var keyTypes = []string{"aes", "ec", "rsa"}

// templates yields four keys of each type, in turn.
func templates(clock *hsm.Clock, owner string) iter.Seq[*hsm.Record] {
	return func(yield func(*hsm.Record) bool) {
		for i := range 4 * len(keyTypes) {
			at := clock.Next()
			r := &hsm.Record{Kind: hsm.KindKey, Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}}
			r.Core = hsm.Core{Origin: hsm.MethodGenerate, Created: at, Owner: owner, Type: keyTypes[i%len(keyTypes)], SensitiveAtBirth: true, ExtractableAtBirth: true}
			fillKey(r)
			for name, value := range hsm.DefaultAttributes(r.Core.Class, r.Core.Type) {
				r.Set(hsm.AttributeRegister(name), must(hsm.ParseAttribute(must(hsm.LookupAttribute(name)), value)), at)
			}
			if !yield(r) {
				return
			}
		}
	}
}

// fillKey makes a key of the record's type.
func fillKey(r *hsm.Record) {
	switch r.Core.Type {
	case "rsa":
		r.Core.Size = 2048
		k := must(rsa.GenerateKey(rand.Reader, 2048))
		fillPair(r, k, &k.PublicKey)
	case "ec":
		r.Core.Size, r.Core.Curve = 256, "secp256r1"
		k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		fillPair(r, k, &k.PublicKey)
	default:
		secret := make([]byte, 32)
		rand.Read(secret)
		block := make([]byte, aes.BlockSize)
		must(aes.NewCipher(secret)).Encrypt(block, block)
		r.Core.Class, r.Core.Size, r.Core.Check, r.Material = hsm.ClassSecret, len(secret), block[:3], hsm.NewSecret(secret)
	}
}

func fillPair(r *hsm.Record, private, public any) {
	r.Core.Class, r.Core.Public = hsm.ClassPrivate, must(x509.MarshalPKIXPublicKey(public))
	r.Material = hsm.NewSecret(must(x509.MarshalPKCS8PrivateKey(private)))
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	must(asn1.Unmarshal(r.Core.Public, &spki))
	sum := sha1.Sum(spki.Key.Bytes)
	r.Core.Check = sum[:3]
}
