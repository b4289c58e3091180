package hsm

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// marker is what must never show.
var marker = []byte{0xde, 0xad, 0xbe, 0xef, 0x41, 0x42, 0x43, 0x44, 0x7f, 0xfe, 0x98, 0x76}

const fmtVerbs = "vTtbcdoOqxXUeEfFgGspw"

var fmtFlags = []string{"", "+", "#", " ", "0", "-", "+#", "# ", "40", ".3", "40.20"}

// traces are the forms in which a printed marker could show, in lower case.
var traces = sync.OnceValue(func() []string {
	out := []string{string(marker), hex.EncodeToString(marker), base64.RawStdEncoding.EncodeToString(marker), base64.RawURLEncoding.EncodeToString(marker)}
	for _, flags := range []string{"", "+", "#", " ", "# "} {
		for _, verb := range fmtVerbs {
			s := fmt.Sprintf("%"+flags+string(verb), marker[:6])
			if !strings.HasPrefix(s, "%!") && verb != 'T' && verb != 'p' {
				out = append(out, strings.Trim(s, "[]\""))
			}
		}
	}
	s := fmt.Sprintf("%#v", marker[:6])
	out = append(out, s[strings.Index(s, "{")+1:len(s)-1], "222,173,190", "222, 173, 190", "222 173 190", `\u00de`)
	for i := range out {
		out[i] = strings.ToLower(out[i])
	}
	slices.Sort(out)
	return slices.Compact(out)
})

func checkNoTrace(t *testing.T, what, got string) {
	t.Helper()
	got = strings.ToLower(got)
	for _, trace := range traces() {
		if strings.Contains(got, trace) {
			t.Fatalf("%s shows the secret as %q", what, trace)
		}
	}
}

func TestTracesFindWhatTheyShould(t *testing.T) {
	for _, leak := range []string{fmt.Sprint(marker), fmt.Sprintf("%#v", marker), fmt.Sprintf("%x", marker), fmt.Sprintf("% X", marker), fmt.Sprintf("%q", marker), fmt.Sprintf("%d", marker)} {
		found := false
		for _, trace := range traces() {
			found = found || strings.Contains(strings.ToLower(leak), trace)
		}
		if !found {
			t.Errorf("%q would not be found", leak)
		}
	}
}

type exported struct {
	S  Secret
	P  *Secret
	L  []Secret
	M  map[string]Secret
	K  *Keyring
	R  *Record
	C  CreateRequest
	Ch *Change
	I  any
}

type unexported struct {
	s  Secret
	p  *Secret
	l  []Secret
	a  [1]Secret
	m  map[string]Secret
	kp *Keyring
	k  Keyring
	r  *Record
	c  CreateRequest
	cp *CreateRequest
	ch Change
	i  any
	e  error
}

// secretHolders are all the shapes in which the marker travels.
func secretHolders(t testing.TB) map[string]any {
	s := NewSecret(bytes.Clone(marker))
	long := NewSecret(append(bytes.Clone(marker), make([]byte, KeySize-len(marker))...))
	k := result(OpenKeyring(long, map[uint64]Secret{1: long}))(t)
	r := aesRecord(t, k)
	r.Material = s
	create, change := CreateRequest{Method: MethodImport, Data: s}, Change{Kind: ChangeUserCreate, Password: s}
	out := map[string]any{
		"secret": s, "pointer": &s, "slice": []Secret{s}, "array": [1]Secret{s}, "map": map[string]Secret{"a": s}, "any": []any{s, &s},
		"keyring": k, "keyring value": *k, "keyrings": []*Keyring{k}, "record": r, "record value": *r, "records": []*Record{r}, "record values": []Record{*r},
		"create": create, "create pointer": &create, "change": change, "change pointer": &change,
		"reflected": reflect.ValueOf(s), "reflected keyring": reflect.ValueOf(*k), "error": fmt.Errorf("wrapped %v: %w", s, errors.New("inner")),
		"exported": exported{S: s, P: &s, L: []Secret{s}, M: map[string]Secret{"a": s}, K: k, R: r, C: create, Ch: &change, I: s},
	}
	u := unexported{
		s: s, p: &s, l: []Secret{s}, a: [1]Secret{s}, m: map[string]Secret{"a": s}, kp: k, k: *k, r: r, c: create, cp: &create, ch: change, i: s,
		e: fmt.Errorf("%v", s),
	}
	out["unexported"], out["unexported pointer"], out["unexported slice"] = u, &u, []unexported{u}
	out["reflected unexported"] = reflect.ValueOf(u)
	return out
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	for name, v := range secretHolders(t) {
		for _, verb := range fmtVerbs {
			for _, flags := range fmtFlags {
				format := "%" + flags + string(verb)
				checkNoTrace(t, name+" under "+format, fmt.Sprintf(format, v))
			}
		}
		for _, format := range []string{"%w %v", "surplus operands", "%*d", "%[3]v", "%"} {
			checkNoTrace(t, name+" in Errorf "+format, fmt.Errorf(format, v, v).Error())
		}
		checkNoTrace(t, name+" printed", fmt.Sprint(v)+fmt.Sprintln(v))
	}
}

func TestSecretsAreNeverMarshalled(t *testing.T) {
	for name, v := range secretHolders(t) {
		j, _ := json.Marshal(v)
		checkNoTrace(t, name+" in JSON", string(j))
		x, _ := xml.Marshal(v)
		checkNoTrace(t, name+" in XML", string(x))
		for _, opts := range []cbor.EncOptions{{}, {BinaryMarshaler: cbor.BinaryMarshalerNone}, {TextMarshaler: cbor.TextMarshalerTextString}} {
			c, _ := result(opts.EncMode())(t).Marshal(v)
			checkNoTrace(t, name+" in CBOR", string(c))
		}
		var g bytes.Buffer
		func() {
			defer func() { _ = recover() }() // gob panics on reflect.Value
			_ = gob.NewEncoder(&g).Encode(v)
		}()
		checkNoTrace(t, name+" in gob", g.String())
	}
	for name, v := range map[string]any{"secret": NewSecret(marker), "empty secret": Secret{}, "keyring": NewKeyring(), "record": &Record{}} {
		if b, err := json.Marshal(v); err == nil {
			t.Errorf("%s marshals to JSON: %s", name, b)
		}
		if b, err := cbor.Marshal(v); err == nil {
			t.Errorf("%s marshals to CBOR: %x", name, b)
		}
		if err := gob.NewEncoder(new(bytes.Buffer)).Encode(v); err == nil {
			t.Errorf("%s marshals to gob", name)
		}
	}
}

func TestSecretsAreNeverLogged(t *testing.T) {
	for name, v := range secretHolders(t) {
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			l := slog.New(h)
			l.With("with", v).WithGroup("g").Info(fmt.Sprint(v), "attr", v, slog.Group("h", "attr", v))
		}
		checkNoTrace(t, name+" in slog", b.String())
	}
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "password", NewSecret(marker))
	if !strings.Contains(b.String(), "[redacted]") {
		t.Errorf("slog writes %s, want [redacted]", b.String())
	}
}

// A user's verifier lies in a register: a record shows none of them.
func TestRecordsShowNoRegister(t *testing.T) {
	k := testKeyring(t, 1)
	r := userRecord(t, k)
	r.Hidden["verifier"] = Register{Value: bytes.Clone(marker)}
	for name, v := range map[string]any{"record": r, "value": *r, "list": []*Record{r}, "values": []Record{*r}} {
		for _, verb := range "vdosxXqtbcU" {
			for _, flags := range fmtFlags {
				checkNoTrace(t, name, fmt.Sprintf("%"+flags+string(verb), v))
			}
		}
		j, _ := json.Marshal(v)
		checkNoTrace(t, name+" in JSON", string(j))
	}
	held := struct{ r *Record }{r}
	checkNoTrace(t, "held", fmt.Sprintf("%v %+v %#v %x", held, held, held, held))
	if got := fmt.Sprint(tombstone(t, k)); got != "[key 0x0123456789abcdef, destroyed, incarnation 0]" {
		t.Error(got)
	}
}

func TestSecret(t *testing.T) {
	b := []byte("correct horse")
	s := NewSecret(b)
	if s.Len() != len(b) || !bytes.Equal(s.Reveal(), b) || !s.Equal(NewSecret(bytes.Clone(b))) || s.Equal(NewSecret([]byte("correct"))) || s.Equal(Secret{}) {
		t.Error("a secret is its bytes")
	}
	if !(Secret{}).Equal(NewSecret(nil)) || (Secret{}).Reveal() != nil || (Secret{}).Len() != 0 {
		t.Error("the zero secret is empty")
	}
	if reflect.TypeFor[Secret]().Comparable() {
		t.Error("secrets compare with ==")
	}
	s.Wipe()
	(Secret{}).Wipe()
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("Wipe left bytes")
	}
}

// An error about a record names it and nothing else.
func TestErrorsShowNoSecret(t *testing.T) {
	k := testKeyring(t, 1)
	r := aesRecord(t, k)
	r.Material = NewSecret(bytes.Repeat(marker, MaxMasked/len(marker)+1))
	_, err := k.Mask(r)
	checkNoTrace(t, "Mask", fmt.Sprint(err))
	checkNoTrace(t, "CheckPassword", fmt.Sprint(CheckPassword(NewSecret(bytes.Repeat(marker, 9)))))
	_, err = OpenKeyring(NewSecret(marker), map[uint64]Secret{1: NewSecret(marker)})
	checkNoTrace(t, "OpenKeyring", fmt.Sprint(err))
}
