package hsm

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		text string
		want map[string]string
		same string // FormatTemplate
	}{
		{"", map[string]string{}, ""},
		{"sensitive=1,extractable=FALSE", map[string]string{"extractable": "false", "sensitive": "true"}, "extractable=false,sensitive=true"},
		{`label=a\,b\\c=d`, map[string]string{"label": `a,b\c=d`}, `label=a\,b\\c=d`},
		{"id=0xABCD,class=secret-key,key-type=AES,token=true", map[string]string{"id": "abcd", "class": "secret-key", "key-type": "aes", "token": "true"}, "class=secret-key,id=abcd,key-type=aes,token=true"},
		{"label=", map[string]string{"label": ""}, "label="},
	} {
		for _, attribute := range []string{WrapTemplate, UnwrapTemplate} {
			got, err := ParseTemplate(attribute, c.text)
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil || FormatTemplate(got) != c.same {
				t.Errorf("%q: %v, %q %s", c.text, err, FormatTemplate(got), diff)
			}
		}
	}
	for _, bad := range []string{"x", "sign", "grows=true", "sign=maybe", "sign=true,sign=true", "sign=true,", ",", "wrap-template=", "unwrap-template=sign\\=true",
		"label=" + strings.Repeat("x", MaxLabel+1), strings.Repeat("sign=true,", 300), "id=xyz", "label=\x00"} {
		if _, err := ParseTemplate(WrapTemplate, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	for _, onlyWrap := range []string{"local=true", "trusted=true", "never-extractable=true", "key-length-bytes=32"} {
		if _, err := ParseTemplate(WrapTemplate, onlyWrap); err != nil {
			t.Error(onlyWrap, err)
		}
		if _, err := ParseTemplate(UnwrapTemplate, onlyWrap); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", onlyWrap, err)
		}
	}
	a := result(LookupAttribute(WrapTemplate))(t)
	if b := result(ParseAttribute(a, "sign=1,decrypt=0"))(t); string(b) != "decrypt=false,sign=true" || FormatAttribute(a, b) != "decrypt=false,sign=true" {
		t.Errorf("%q", b)
	}
}

func FuzzParseTemplate(f *testing.F) {
	f.Add(`label=a\,b\\c,sign=true`, false)
	f.Add("class=secret-key,id=0xAB", true)
	f.Fuzz(func(t *testing.T, text string, unwrap bool) {
		attribute := map[bool]string{false: WrapTemplate, true: UnwrapTemplate}[unwrap]
		got, err := ParseTemplate(attribute, text)
		if err != nil {
			return
		}
		once := FormatTemplate(got)
		if len(once) > MaxTemplate { // escapes and canonical values may be longer
			return
		}
		again, err := ParseTemplate(attribute, once)
		if err != nil || FormatTemplate(again) != once {
			t.Fatalf("%q becomes %q, and that %v, %v", text, once, again, err)
		}
	})
}
