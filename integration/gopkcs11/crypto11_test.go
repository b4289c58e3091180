package gopkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThalesGroup/crypto11"
)

// setting is an environment variable that has to be set.
func setting(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: this package is run by the tests of package integration", name)
	}
	return v
}

// open logs in through crypto11.
func open(t *testing.T) *crypto11.Context {
	t.Helper()
	c, err := crypto11.Configure(&crypto11.Config{Path: setting(t, "PKCS11_MODULE"), TokenLabel: setting(t, "PKCS11_TOKEN"), Pin: setting(t, "PKCS11_PIN"), GCMIVLength: 12})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// name is an identifier nobody has.
func name(t *testing.T) []byte {
	t.Helper()
	return append([]byte(t.Name()+"-"), rand.Text()...)
}

var digest = sha256.Sum256([]byte("a message"))

func TestRSA(t *testing.T) {
	c, id := open(t), name(t)
	if _, err := c.GenerateRSAKeyPair(id, 2048); err != nil {
		t.Fatal(err)
	}
	key, err := c.FindRSAKeyPair(id, nil)
	if err != nil || key == nil {
		t.Fatalf("find: %v, %v", key, err)
	}
	defer key.Delete()
	public := key.Public().(*rsa.PublicKey)
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
		t.Error(err)
	}
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	if signature, err = key.Sign(rand.Reader, digest[:], options); err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPSS(public, crypto.SHA256, digest[:], signature, options); err != nil {
		t.Error(err)
	}
	sealed, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, digest[:], nil)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := key.Decrypt(rand.Reader, sealed, &rsa.OAEPOptions{Hash: crypto.SHA256})
	if err != nil || !bytes.Equal(opened, digest[:]) {
		t.Errorf("decrypt: %x, %v", opened, err)
	}
}

func TestECDSA(t *testing.T) {
	c := open(t)
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := c.GenerateECDSAKeyPair(name(t), curve)
		if err != nil {
			t.Fatalf("%s: %v", curve.Params().Name, err)
		}
		signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil || !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], signature) {
			t.Errorf("%s: signature %x, %v", curve.Params().Name, signature, err)
		}
		if err := key.Delete(); err != nil {
			t.Error(err)
		}
	}
}

func TestGCM(t *testing.T) {
	c := open(t)
	key, err := c.GenerateSecretKey(name(t), 256, crypto11.CipherAES)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Delete()
	gcm, err := key.NewGCM()
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	rand.Read(nonce)
	sealed := gcm.Seal(nil, nonce, digest[:], []byte("with"))
	opened, err := gcm.Open(nil, nonce, sealed, []byte("with"))
	if err != nil || !bytes.Equal(opened, digest[:]) {
		t.Errorf("open: %x, %v", opened, err)
	}
	if _, err := gcm.Open(nil, nonce, sealed, []byte("other")); err == nil {
		t.Error("opened with other additional data")
	}
}

func TestHMAC(t *testing.T) {
	c := open(t)
	key, err := c.GenerateSecretKey(name(t), 256, crypto11.CipherHMACSHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Delete()
	sums := [2][]byte{}
	for i := range sums {
		mac, err := key.NewHMAC(0x251, 0) // CKM_SHA256_HMAC
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mac.Write(digest[:]); err != nil {
			t.Fatal(err)
		}
		sums[i] = mac.Sum(nil)
	}
	if len(sums[0]) != 32 || !bytes.Equal(sums[0], sums[1]) {
		t.Errorf("HMACs %x and %x", sums[0], sums[1])
	}
}

// TestTLS serves TLS with a key in the cluster, to 32 clients at once.
func TestTLS(t *testing.T) {
	c := open(t)
	key, err := c.GenerateECDSAKeyPair(name(t), elliptic.P256())
	if err != nil {
		t.Fatal(err)
	}
	defer key.Delete()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "here"}, DNSNames: []string{"here"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serve(l)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "here"})
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
	all.Wait()
}

func serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			io.WriteString(conn, "hello")
			conn.Close()
		}()
	}
}

func TestRandom(t *testing.T) {
	r, err := open(t).NewRandomReader()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100_000)
	if _, err := io.ReadFull(r, b); err != nil || bytes.Equal(b[:32], b[32:64]) {
		t.Errorf("random: %v", err)
	}
}
