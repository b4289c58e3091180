package storage_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/hsmbackup/hsmbackup/storage"
)

var sentinels = []error{
	storage.ErrExist, storage.ErrNotExist, storage.ErrNoBucket, storage.ErrDenied, storage.ErrCredentials, storage.ErrFull, storage.ErrUnreachable,
	storage.ErrLocked, storage.ErrNoLock, storage.ErrRegion, storage.ErrClock, storage.ErrTLS, storage.ErrName, storage.ErrSize, storage.ErrDamaged, storage.ErrTooLarge, storage.ErrLocation,
}

func TestEverySentinelHasItsOwnHint(t *testing.T) {
	seen := map[string]bool{}
	for _, want := range sentinels {
		err := &storage.Error{Op: "put", Name: "a", Location: "folder", Kind: want}
		hint := storage.Hint(err)
		if hint == "" || seen[hint] || strings.HasSuffix(hint, ".") {
			t.Errorf("%v: hint %q", want, hint)
		}
		seen[hint] = true
	}
	if hint := storage.Hint(io.EOF); hint != "" {
		t.Errorf("a foreign error has the hint %q", hint)
	}
	if hint := storage.Hint(nil); hint != "" {
		t.Errorf("no error has the hint %q", hint)
	}
}

func TestErrorIsOneLine(t *testing.T) {
	cause := errors.New("first line\nsecond\tline\r\n")
	err := &storage.Error{Op: "put", Name: "a/b", Location: "s3://bucket", Kind: storage.ErrFull, Err: cause}
	if got, want := err.Error(), "put a/b in s3://bucket: the store is full: first line second line"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, storage.ErrFull) || !errors.Is(err, cause) {
		t.Error("sentinel or cause is lost")
	}
}

func TestRefusedCredentialsAreAlsoDenied(t *testing.T) {
	err := &storage.Error{Op: "list", Location: "s3://bucket", Kind: storage.ErrCredentials}
	if !errors.Is(err, storage.ErrDenied) || !errors.Is(err, storage.ErrCredentials) {
		t.Errorf("%v", err)
	}
}

func TestNamesOfTheGrammarAreAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.StringMatching(`[a-z0-9_-][a-z0-9._-]{0,20}`)
		name := strings.Join(rapid.SliceOfN(segment, 1, 8).Draw(t, "segments"), "/")
		if err := storage.CheckName(name); err != nil {
			t.Fatal(err)
		}
		for _, prefix := range []string{"", name, name + "/"} {
			if err := storage.CheckPrefix(prefix); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestNothingButTheGrammarIsAccepted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z./ A\\]{0,12}`)).Draw(t, "name")
		want := name != "" && len(name) <= storage.MaxName
		for segment := range strings.SplitSeq(name, "/") {
			want = want && segment != "" && segment != "." && segment != ".." && len(segment) <= storage.MaxSegment &&
				strings.Trim(segment, "abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
		}
		err := storage.CheckName(name)
		if (err == nil) != want {
			t.Fatalf("%q: %v", name, err)
		}
		if err != nil && (!errors.Is(err, storage.ErrName) || strings.Contains(err.Error(), "\n")) {
			t.Fatalf("%q: %v", name, err)
		}
	})
}

func TestKeysDoNotShowTheirSecret(t *testing.T) {
	keys := storage.NewKeys("access", "very-secret", "session-token")
	nested := struct {
		Keys storage.Keys
		P    *storage.Keys
	}{keys, &keys}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
		for _, v := range []any{keys, &keys, nested, []storage.Keys{keys}} {
			text := fmt.Sprintf(verb, v)
			if strings.Contains(text, "very") || strings.Contains(text, "token") || strings.Contains(text, fmt.Sprintf("%x", "very")) {
				t.Errorf("%s of %T shows the secret: %s", verb, v, text)
			}
		}
	}
	if b, err := json.Marshal(nested); err == nil {
		t.Errorf("marshalled: %s", b)
	}
	if access, secret, session := keys.Reveal(); access != "access" || secret != "very-secret" || session != "session-token" {
		t.Error("the keys are not what they were made of")
	}
}
