package pkcs11

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/ck"
	"github.com/hsmbackup/hsmbackup/cluster/pkcs11/rpc"
)

// mechanismNames reads the names of mechanisms from the module's header; of several for
// one number the first counts.
func mechanismNames(t *testing.T) map[ck.Mech]string {
	header, err := os.ReadFile("module/src/numbers.gen.h")
	if err != nil {
		t.Fatal(err)
	}
	names := map[ck.Mech]string{}
	for _, m := range regexp.MustCompile(`#define (CKM_\w+) (0x[0-9a-f]+)UL`).FindAllStringSubmatch(string(header), -1) {
		n, err := strconv.ParseUint(m[2], 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		if names[ck.Mech(n)] == "" {
			names[ck.Mech(n)] = m[1]
		}
	}
	return names
}

// mechanismRow is the row of one mechanism in MECHANISMS.md.
func mechanismRow(number ck.Mech, m mechanism, name string) string {
	var does []string
	for _, u := range []struct {
		flag uint64
		name string
	}{{ck.MechGenerate, "generate"}, {ck.MechGeneratePair, "generate pair"}, {ck.MechSign, "sign, verify"}, {ck.MechSignRecover, "recover"},
		{ck.MechEncrypt, "encrypt, decrypt"}, {ck.MechWrap, "wrap, unwrap"}, {ck.MechDerive, "derive"}, {ck.MechEncapsulate, "encapsulate, decapsulate"},
		{ck.MechDigest, "digest"}} {
		if m.flags&u.flag != 0 {
			does = append(does, u.name)
		}
	}
	keys, stock := strings.Join(m.types, ", "), "ours only"
	if keys == "" {
		keys = "none"
	}
	switch {
	case rpc.FormOld.Passes(number):
		stock = "stock, ours"
	case rpc.FormNew.Passes(number):
		stock = "stock from 0.25.6, ours"
	}
	return fmt.Sprintf("| %s | 0x%04x | %s | %s | %s |", name, uint32(number), keys, strings.Join(does, ", "), stock)
}

// TestMechanismList: MECHANISMS.md lists what is offered, and nothing else.
func TestMechanismList(t *testing.T) {
	names := mechanismNames(t)
	var want []string
	for _, number := range slices.Sorted(maps.Keys(mechanisms)) {
		if names[number] == "" {
			t.Errorf("mechanism 0x%x has no name in the module's header", uint32(number))
		}
		want = append(want, mechanismRow(number, mechanisms[number], names[number]))
	}
	page, err := os.ReadFile("MECHANISMS.md")
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`(?m)^\| CKM_.*$`).FindAllString(string(page), -1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows of MECHANISMS.md (-want +got):\n%s\nall rows:\n%s", diff, strings.Join(want, "\n"))
	}
}
