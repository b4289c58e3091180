package hsm

import (
	"strings"
	"testing"
)

func TestParseFilter(t *testing.T) {
	attrs := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, c := range []struct {
		terms string // separated by |
		want  Filter
	}{
		{"key-reference=0x2a", Filter{Refs: []KeyRef{42}, Attrs: attrs()}},
		{"key-reference=42|key-reference=0x2b key-reference=43", Filter{Refs: []KeyRef{42, 43}, Attrs: attrs()}},
		{"owner=Alice", Filter{Owner: "alice", Attrs: attrs()}},
		{"attr.label=my key", Filter{Attrs: attrs("label", "my key")}},
		{"attr.label=a  b attr.sign=1", Filter{Attrs: attrs("label", "a  b", "sign", "true")}},
		{"  attr.label=my key   owner=bob|attr.id=0xABCD", Filter{Owner: "bob", Attrs: attrs("label", "my key", "id", "abcd")}},
		{"attr.label=a=b", Filter{Attrs: attrs("label", "a=b")}},
		{"attr.label= trailing ", Filter{Attrs: attrs("label", " trailing ")}},
		{"attr.label=", Filter{Attrs: attrs("label", "")}},
		{"attr.class=Secret-Key attr.key-type=AES attr.token=T", Filter{Attrs: attrs("class", "secret-key", "key-type", "aes", "token", "true")}},
		{"attr.check-value=0xAABBCC attr.curve=prime256v1", Filter{Attrs: attrs("check-value", "aabbcc", "curve", "secp256r1")}},
		{"attr.sign=true attr.sign=1", Filter{Attrs: attrs("sign", "true")}},
	} {
		got, err := ParseFilter(strings.Split(c.terms, "|"))
		if err != nil {
			t.Errorf("%s: %v", c.terms, err)
			continue
		}
		equal(t, c.terms, got, c.want)
	}
}

func TestParseFilterRefuses(t *testing.T) {
	for _, s := range []string{
		"", " ", "label=x", "attr.", "attr.label", "attr.nothing=x", "attr.=x", "key-reference=", "key-reference=0x0", "key-reference=abc", "owner=", "owner=a-b",
		"owner=a owner=b", "attr.label=a attr.label=b", "attr.sign=maybe", "attr.token=maybe", "attr.id=xyz", "refs=1", "=", "attr.label=\x00",
	} {
		f, err := ParseFilter([]string{s})
		wantErr(t, s, err, ErrInvalid)
		equal(t, s, f, Filter{})
	}
	if f, err := ParseFilter(nil); err != nil || !f.Empty() {
		t.Error("no terms select everything:", err)
	}
}

func TestFilterMatch(t *testing.T) {
	k := testKeyring(t, 1)
	key := aesRecord(t, k).Info(Digest{})
	for terms, want := range map[string]bool{
		"key-reference=0x0123456789abcdef":                            true,
		"key-reference=0x1 key-reference=0x0123456789abcdef":          true,
		"key-reference=0x1":                                           false,
		"owner=alice":                                                 true,
		"owner=bob":                                                   false,
		"attr.label=payments attr.sign=true owner=alice":              true,
		"attr.label=payments attr.sign=false":                         false,
		"attr.label=Payments":                                         false,
		"attr.class=secret-key attr.key-length-bytes=32 attr.local=1": true,
		"attr.check-value=AABBCC":                                     true,
		"attr.wrap=true":                                              false,
		"attr.token=false":                                            false,
		"attr.label=payments key-reference=0x0123456789abcdef owner=eve": false,
	} {
		f, err := ParseFilter([]string{terms})
		if err != nil || f.Match(key) != want || f.Empty() {
			t.Errorf("%s: matches %v, want %v, %v", terms, f.Match(key), want, err)
		}
	}
	if !(Filter{}).Match(key) || !(Filter{}).Empty() {
		t.Error("the zero filter selects everything")
	}
}
