package mech

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestRedaction prints everything that holds key material in every way fmt, json and slog know.
func TestRedaction(t *testing.T) {
	raw := bytes.Repeat([]byte("SECRET!!"), 4)
	sk := secret(t, AES, raw)
	gen := secret(t, GenericSecret, raw)
	values := map[string]any{
		"SecretKey": sk, "SecretKey value": *sk, "generic": gen,
		"Generated":         Generated{Spec: sk.Spec(), Secret: raw},
		"Generated pointer": &Generated{Spec: sk.Spec(), Secret: raw, Public: raw},
		"Imported":          Imported{Class: ClassSecret, Spec: sk.Spec(), Secret: raw},
		"in a struct":       struct{ Key *SecretKey }{sk},
		"in a hidden field": struct{ key SecretKey }{*sk},
		"in a slice":        []SecretKey{*sk},
		"in a map":          map[string]*SecretKey{"k": sk},
	}
	secrets := [][]byte{raw[:8]}
	for _, name := range allAsymmetric {
		k := private(t, name)
		values[name], values[name+" value"], values[name+" public"] = k, *k, k.PublicKey()
		values[name+" in a hidden field"] = struct{ key *PrivateKey }{k}
		der := k.PKCS8()
		secrets = append(secrets, der[len(der)-12:])
		if k.Spec().Type == EC {
			secrets = append(secrets, k.k().scalar()[4:12])
		} else {
			secrets = append(secrets, k.k().inner()[8:16])
		}
		if k.k().rsa != nil {
			secrets = append(secrets, []byte(k.k().rsa.D.String()[:20]), k.k().rsa.Primes[0].Bytes()[:8])
		}
	}
	for what, v := range values {
		for _, out := range renderings(v) {
			checkHidden(t, what, out, secrets)
			if !strings.Contains(what, "hidden") && !strings.Contains(out, "[redacted ") {
				t.Errorf("%s prints as %q", what, out)
			}
		}
	}
	for _, out := range renderings(PrivateKey{}) {
		if out == "" {
			t.Error("the zero key prints nothing")
		}
	}
}

func renderings(v any) []string {
	var out []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%08v", "%t", "%e", "%p"} {
		if verb == "%p" || verb == "%t" || verb == "%e" {
			fmt.Fprintf(new(bytes.Buffer), verb, v) // must not panic; %p is an address by definition
			continue
		}
		out = append(out, fmt.Sprintf(verb, v))
	}
	out = append(out, fmt.Sprint(v), fmt.Sprintln(v))
	if j, err := json.Marshal(v); err == nil && string(j) != "{}" {
		out = append(out, string(j))
	}
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("key", "key", v)
	slog.New(slog.NewJSONHandler(&js, nil)).Info("key", "key", v)
	if strings.Contains(js.String(), "redacted") {
		out = append(out, js.String())
	}
	return append(out, text.String())
}

func checkHidden(t *testing.T, what, out string, secrets [][]byte) {
	t.Helper()
	bare := strings.ToLower(strings.NewReplacer(" ", "", "0x", "", ",", "", "[", "", "]", "").Replace(out))
	for _, s := range secrets {
		decimal := strings.Trim(fmt.Sprint(s[:4]), "[]")
		if strings.Contains(out, string(s)) || strings.Contains(bare, hex.EncodeToString(s)) || strings.Contains(out, decimal) {
			t.Errorf("%s shows key material", what)
		}
	}
}

// TestErrorsAreSilent: no error shows bytes of a key that was refused.
func TestErrorsAreSilent(t *testing.T) {
	marker := []byte("SECRETSECRET")
	var errs []error
	_, err := ParseSecret(AES, marker)
	errs = append(errs, err)
	_, err = ParsePrivate(marker)
	errs = append(errs, err)
	_, err = ParsePrivate(edit(t, "ed25519", func(_ *pkcs8Info, b *[]byte) { *b = marker }))
	errs = append(errs, err)
	_, err = ParsePrivate(editEC(t, func(k *sec1Private) { k.PrivateKey = bytes.Repeat(marker, 4) }))
	errs = append(errs, err)
	_, err = ParseImport("", append([]byte("-----BEGIN PRIVATE KEY-----\n"), marker...))
	errs = append(errs, err)
	for _, err := range errs {
		if err == nil || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), hex.EncodeToString(marker[:4])) {
			t.Errorf("error %v", err)
		}
	}
}
