package hsm

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestParseKeyRef(t *testing.T) {
	for s, want := range map[string]KeyRef{
		"0x00000000002e06bf": 0x2e06bf, "0X2E06BF": 0x2e06bf, "0x1": 1, "3016383": 3016383, "9223372036854775807": 1<<63 - 1, "0x7fffffffffffffff": 1<<63 - 1, "007": 7,
	} {
		if got, err := ParseKeyRef(s); err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "0", "0x", "0x0", "0x0000000000000000", "0x8000000000000000", "0xffffffffffffffff", "9223372036854775808", "18446744073709551615", "0x00000000000000001",
		"00000000000000000001", "2e06bf", "0x2e06bg", "-1", "+1", "0x-1", "1_000", "0x1_0", " 1", "1 ", "0b1", "0o7", "1e3", "x1", strings.Repeat("9", 1000),
	} {
		got, err := ParseKeyRef(s)
		wantErr(t, fmt.Sprintf("%.20q = %v", s, got), err, ErrInvalid)
		if len(fmt.Sprint(err)) > 300 {
			t.Errorf("the error repeats %d characters", len(s))
		}
	}
	if got := KeyRef(0x2e06bf).String(); got != "0x00000000002e06bf" {
		t.Error(got)
	}
}

func TestNewIdentifiers(t *testing.T) {
	refs, hsms, clusters := map[KeyRef]bool{}, map[HSMID]bool{}, map[ClusterID]bool{}
	for range 1000 {
		r, h, c := NewKeyRef(), NewHSMID(), NewClusterID()
		if !r.valid() || h == 0 || c == 0 {
			t.Fatal("not valid:", r, h, c)
		}
		refs[r], hsms[h], clusters[c] = true, true, true
	}
	if len(refs)+len(hsms)+len(clusters) != 3000 {
		t.Error("identifiers repeat")
	}
}

func TestIdentifiersSurviveJSON(t *testing.T) {
	type all struct {
		Ref, None KeyRef
		HSM       HSMID
		NoHSM     HSMID
		Cluster   ClusterID
		Lineage   Lineage
		NoLineage Lineage
		Digest    Digest
		ByRef     map[KeyRef]int
	}
	in := all{
		Ref: NewKeyRef(), HSM: NewHSMID(), Cluster: NewClusterID(), Lineage: Lineage(sequence(3, 16)), Digest: Digest(sequence(9, 16)),
		ByRef: map[KeyRef]int{testRef: 1},
	}
	b := result(json.Marshal(in))(t)
	var out all
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	equal(t, string(b), out, in)
	if !strings.Contains(string(b), `"None":"0x0000000000000000"`) {
		t.Errorf("%s", b)
	}
}

func TestParseIdentifiersRefuse(t *testing.T) {
	h, c := NewHSMID().String(), NewClusterID().String()
	for name, bad := range map[string][]string{
		"hsm":     {"", "hsm-", c, h[:len(h)-1], h + "a", strings.ToUpper(h), "hsm-1111111111111", "hsm-aaaaaaaaaaaa\n", "hsm-aaaaaaaaaaaaz", h[4:]},
		"cluster": {"", "cluster-", h, c[:len(c)-1], c + "a", strings.ToUpper(c), "cluster-aaaaaaaaaaaaz", c[8:]},
		"lineage": {"", "lineage-", "lineage-00", "lineage-" + strings.Repeat("g", 32), strings.Repeat("0", 34), "lineage-lineage-" + strings.Repeat("0", 32)},
		"digest":  {"", "00", strings.Repeat("g", 32), strings.Repeat("0", 34)},
	} {
		for _, s := range bad {
			wantErr(t, name+" "+s, unmarshalIdentifier(name, s), ErrInvalid)
		}
	}
}

func unmarshalIdentifier(name, s string) error {
	switch name {
	case "hsm":
		return new(HSMID).UnmarshalText([]byte(s))
	case "cluster":
		return new(ClusterID).UnmarshalText([]byte(s))
	case "lineage":
		return new(Lineage).UnmarshalText([]byte(s))
	}
	return new(Digest).UnmarshalText([]byte(s))
}

func TestKinds(t *testing.T) {
	for k, want := range map[Kind]string{KindKey: "key", KindUser: "user", KindPolicy: "policy", KindMember: "member", KindLockout: "lockout", 0: "kind(0)", 77: "kind(77)"} {
		if k.String() != want {
			t.Errorf("%d is called %s", k, k)
		}
		if (k.Scope() == ScopeCluster) != (k == KindMember || k == KindLockout) {
			t.Errorf("%s has scope %d", k, k.Scope())
		}
	}
}

func TestNamedReferences(t *testing.T) {
	seen := map[KeyRef]string{}
	for _, name := range []string{"alice", "bob", "admin", ""} {
		for what, ref := range map[string]KeyRef{"user": UserRef(name), "policy": PolicyRef(name)} {
			if !ref.valid() || seen[ref] != "" {
				t.Errorf("%s %q has the reference %v of %s", what, name, ref, seen[ref])
			}
			seen[ref] = what + name
		}
	}
	if UserRef("alice") != 0x7dd261df2b6a038f {
		t.Errorf("the reference of alice is %v on this HSM", UserRef("alice"))
	}
}
