package gopkcs11

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// session is a session of miekg's context, logged in.
type session struct {
	*pkcs11.Ctx
	pkcs11.SessionHandle
	slot uint
}

func (s session) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) session {
	t.Helper()
	s := session{Ctx: pkcs11.New(setting(t, "PKCS11_MODULE"))}
	if s.Ctx == nil {
		t.Fatal("the module does not load")
	}
	s.must(t, s.Initialize())
	slots, err := s.GetSlotList(true)
	s.must(t, err)
	s.slot = slots[0]
	s.SessionHandle, err = s.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	s.must(t, err)
	s.must(t, s.Login(s.SessionHandle, pkcs11.CKU_USER, setting(t, "PKCS11_PIN")))
	t.Cleanup(func() {
		s.must(t, s.Finalize())
		s.Destroy()
	})
	return s
}

func mechanism(m uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, parameter)}
}

func TestEdDSA(t *testing.T) {
	const edwardsKeyPairGen, eddsa = 0x1055, 0x1057
	s := start(t)
	curve := []byte{0x06, 0x03, 0x2b, 0x65, 0x70}
	public, private, err := s.GenerateKeyPair(s.SessionHandle, mechanism(edwardsKeyPairGen, nil),
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curve), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)},
		[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
	s.must(t, err)
	s.must(t, s.SignInit(s.SessionHandle, mechanism(eddsa, nil), private))
	signature, err := s.Sign(s.SessionHandle, []byte("a message"))
	s.must(t, err)
	point, err := s.GetAttributeValue(s.SessionHandle, public, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	s.must(t, err)
	key := point[0].Value[len(point[0].Value)-ed25519.PublicKeySize:]
	if !ed25519.Verify(key, []byte("a message"), signature) {
		t.Errorf("signature %x of key %x does not verify", signature, key)
	}
}

func secretKey(t *testing.T, s session) pkcs11.ObjectHandle {
	t.Helper()
	key, err := s.GenerateKey(s.SessionHandle, mechanism(pkcs11.CKM_AES_KEY_GEN, nil), []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true), pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, true), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true)})
	s.must(t, err)
	return key
}

// TestWrap wraps with AES key wrap of both paddings, and unwraps to a key that
// decrypts what the first has encrypted.
func TestWrap(t *testing.T) {
	const keyWrap, keyWrapKWP = 0x2109, 0x210b
	s := start(t)
	wrapping, key := secretKey(t, s), secretKey(t, s)
	iv := bytes.Repeat([]byte{7}, 16)
	s.must(t, s.EncryptInit(s.SessionHandle, mechanism(pkcs11.CKM_AES_CBC_PAD, iv), key))
	sealed, err := s.Encrypt(s.SessionHandle, []byte("a message"))
	s.must(t, err)
	for _, m := range []uint{keyWrap, keyWrapKWP} {
		wrapped, err := s.WrapKey(s.SessionHandle, mechanism(m, nil), wrapping, key)
		s.must(t, err)
		again, err := s.UnwrapKey(s.SessionHandle, mechanism(m, nil), wrapping, wrapped, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true)})
		s.must(t, err)
		s.must(t, s.DecryptInit(s.SessionHandle, mechanism(pkcs11.CKM_AES_CBC_PAD, iv), again))
		opened, err := s.Decrypt(s.SessionHandle, sealed)
		if err != nil || string(opened) != "a message" {
			t.Errorf("mechanism 0x%x: %q, %v", m, opened, err)
		}
	}
}

// TestIVOfTheHSM leaves the IV of AES-GCM to the HSM and reads it afterwards, as the
// package's documentation has it for CloudHSM.
func TestIVOfTheHSM(t *testing.T) {
	s := start(t)
	key := secretKey(t, s)
	p := pkcs11.NewGCMParams(make([]byte, 12), []byte("aad"), 128)
	defer p.Free()
	s.must(t, s.EncryptInit(s.SessionHandle, mechanism(pkcs11.CKM_AES_GCM, p), key))
	sealed, err := s.Encrypt(s.SessionHandle, []byte("a message"))
	s.must(t, err)
	iv := p.IV()
	if len(iv) != 12 || bytes.Equal(iv, make([]byte, 12)) {
		t.Fatalf("IV %x", iv)
	}
	s.must(t, s.DecryptInit(s.SessionHandle, mechanism(pkcs11.CKM_AES_GCM, pkcs11.NewGCMParams(iv, []byte("aad"), 128)), key))
	if opened, err := s.Decrypt(s.SessionHandle, sealed); err != nil || string(opened) != "a message" {
		t.Errorf("%q, %v", opened, err)
	}
}

// TestSensitiveValuesStay asks for what may not be read.
func TestSensitiveValuesStay(t *testing.T) {
	s := start(t)
	key := secretKey(t, s)
	_, err := s.GetAttributeValue(s.SessionHandle, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
	if err != pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
		t.Errorf("the value of a sensitive key: %v", err)
	}
}

func TestObjectsAreFound(t *testing.T) {
	s := start(t)
	id := name(t)
	key := secretKey(t, s)
	s.must(t, s.SetAttributeValue(s.SessionHandle, key, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}))
	s.must(t, s.FindObjectsInit(s.SessionHandle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id)}))
	found, _, err := s.FindObjects(s.SessionHandle, 10)
	s.must(t, err)
	s.must(t, s.FindObjectsFinal(s.SessionHandle))
	if !slices.Equal(found, []pkcs11.ObjectHandle{key}) {
		t.Errorf("found %v, want %v", found, key)
	}
}

// TestManySessions has 32 goroutines, each with a session, in calls at once.
func TestManySessions(t *testing.T) {
	s := start(t)
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			own := s
			var err error
			if own.SessionHandle, err = s.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
				t.Error(err)
				return
			}
			for range 20 {
				if err := own.DigestInit(own.SessionHandle, mechanism(pkcs11.CKM_SHA256, nil)); err != nil {
					t.Error(err)
					return
				}
				if sum, err := own.Digest(own.SessionHandle, []byte("a message")); err != nil || !bytes.Equal(sum, digest[:]) {
					t.Errorf("digest %x, %v", sum, err)
				}
			}
			if err := own.CloseSession(own.SessionHandle); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
