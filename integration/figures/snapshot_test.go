package figures

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/hsmbackup/hsmbackup/backup"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/rpc/pki"
)

// snapshotKeys is how many keys the snapshot is of.
const snapshotKeys = 100_000

// keys makes n keys of about 1 KiB masked: a private key's size of secret, and
// the attributes of a real one.
func keys(k *hsm.Keyring, n int) iter.Seq2[hsm.MaskedObject, error] {
	clock := hsm.NewClock(hsm.NewHSMID(), time.Now)
	return func(yield func(hsm.MaskedObject, error) bool) {
		for i := range n {
			m, err := key(k, clock, i)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

func key(k *hsm.Keyring, clock *hsm.Clock, i int) (hsm.MaskedObject, error) {
	material := make([]byte, 256)
	rand.Read(material)
	r := &hsm.Record{
		Kind: hsm.KindKey, Ref: hsm.NewKeyRef(), Registers: map[string]hsm.Register{}, Hidden: map[string]hsm.Register{}, Material: hsm.NewSecret(material),
		Core: hsm.Core{Class: hsm.ClassSecret, Type: "generic-secret", Size: len(material), Origin: hsm.MethodGenerate, Created: clock.Next(), Owner: "root", SensitiveAtBirth: true, ExtractableAtBirth: true},
	}
	at := clock.Next()
	for name, value := range hsm.DefaultAttributes(r.Core.Class, r.Core.Type) {
		a, err := hsm.LookupAttribute(name)
		if err != nil {
			return hsm.MaskedObject{}, err
		}
		encoded, err := hsm.ParseAttribute(a, value)
		if err != nil {
			return hsm.MaskedObject{}, err
		}
		r.Set(hsm.AttributeRegister(name), encoded, at)
	}
	r.Set(hsm.AttributeRegister("label"), fmt.Appendf(nil, "figures/customer-%06d/signing", i), at)
	var err error
	if r.Birth, err = k.Birth(r); err != nil {
		return hsm.MaskedObject{}, err
	}
	return k.Mask(r)
}

// BenchmarkSnapshot100k takes a full snapshot of 100,000 keys with the real
// command into a folder, restores it, and does the same work on the same bytes
// in memory with zstd and age as one stream, the limit.
func BenchmarkSnapshot100k(b *testing.B) {
	dir := b.TempDir()
	keyring := hsm.NewKeyring()
	ca, err := pki.NewAuthority(keyring.Lineage())
	if err != nil {
		b.Fatal(err)
	}
	s := spec(filepath.Join(dir, "cluster"))
	s.Keyring, s.CA = keyring, ca.PEM()
	var size int64
	var all bytes.Buffer
	text, recipient, err := backup.NewIdentity(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	s.Fill = func(ctx context.Context, into hsm.Session) error {
		policy := hsm.Settings{MinCopies: 2, Custodians: []string{recipient}, Threshold: 1}
		if _, err := into.Change(ctx, hsm.Change{Kind: hsm.ChangeSettings, Settings: &policy}); err != nil {
			return err
		}
		_, err := into.Insert(ctx, func(yield func(hsm.MaskedObject, error) bool) {
			for m, err := range keys(keyring, snapshotKeys) {
				size += int64(len(m.Bytes))
				all.Write(m.Bytes)
				if !yield(m, err) {
					return
				}
			}
		})
		return err
	}
	p := start(b, s)
	identity := filepath.Join(dir, "identity.txt")
	if err := os.WriteFile(identity, text.Reveal(), 0o600); err != nil {
		b.Fatal(err)
	}
	b.Run("limit=zstd|age", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			compressAndEncrypt(b, all.Bytes())
		}
	})
	all = bytes.Buffer{}
	store := ""
	b.Run("take", func(b *testing.B) {
		b.SetBytes(size)
		var peak int64
		for range b.N {
			// A store that holds the snapshot already would be told that nothing
			// has changed, and measure that.
			store = filepath.Join(dir, rand.Text())
			peak = max(peak, command(b, "snapshot", "--cluster", p.Folder(), "--to", store, "--recipient", recipient, "--quiet"))
		}
		b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(size)
		var peak int64
		for range b.N {
			clone := filepath.Join(dir, rand.Text())
			peak = max(peak, command(b, "restore", "--from", store, "--identity", identity, "--name", "clone", "--region", "there", "--dir", clone, "--hsms", "3", "--quiet"))
			b.StopTimer()
			if err := os.RemoveAll(clone); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
	})
}

func compressAndEncrypt(b *testing.B, all []byte) {
	b.Helper()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		b.Fatal(err)
	}
	sealed, err := age.Encrypt(io.Discard, id.Recipient())
	if err != nil {
		b.Fatal(err)
	}
	z, err := zstd.NewWriter(sealed, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := z.Write(all); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	if err := sealed.Close(); err != nil {
		b.Fatal(err)
	}
}
