package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestGeneratedFilesAreUpToDate(t *testing.T) {
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", "src", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("src/%s is not what the tables say; run go generate in cluster/pkcs11/module", name)
		}
	}
	there, err := filepath.Glob("../src/*.gen.*")
	if err != nil || len(there) != len(files) {
		t.Errorf("src has generated files %q (%v), want %d", there, err, len(files))
	}
}

// stock are the signatures that p11-kit's peers insist on, written down from the
// protocol and not from our tables: call, request, response.
const stock = `
3 "" vsusv, 4 yfu au, 5 u ssuvv, 6 u ssssuuuuuuuuuuuvvs, 7 ufu au, 8 uu uuu, 10 uu u, 11 u "", 12 u "", 13 u uuuu,
14 uay "", 15 uayay "", 16 ufy ay, 17 uayuu "", 18 uuay "", 19 u "", 20 uaA u, 21 uuaA u, 22 uu "", 23 uu u,
25 uuaA "", 26 uaA "", 28 u "", 30 uayfy ay, 31 uayfy ay, 32 ufy ay, 33 uMu "", 34 uayfy ay, 35 uayfy ay, 36 ufy ay,
37 uM "", 38 uayfy ay, 39 uay "", 40 uu "", 41 ufy ay, 42 uMu "", 43 uayfy ay, 44 uay "", 45 ufy ay, 46 uMu "", 47 uayfy ay,
48 uMu "", 49 uayay "", 50 uay "", 51 uay "", 52 uMu "", 53 uayfy ay, 54 uayfy ay, 55 uayfy ay, 56 uayfy ay, 57 uayfy ay,
58 uMaA u, 59 uMaAaA uu, 61 uMuayaA u, 62 uMuaA u, 63 uay "", 66 uuayay "", 67 uu "",
256 uMuaAfy ayu, 257 uMuaAay u`

func TestSignatures(t *testing.T) {
	functions, err := readFunctions()
	if err != nil {
		t.Fatal(err)
	}
	structs, err := readStructs()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range functions {
		if _, err := strconv.Atoi(f.call); err != nil {
			continue
		}
		request, response, err := signatures(f, structs)
		if err != nil {
			t.Fatal(err)
		}
		got[f.call] = request + " " + response
	}
	for line := range strings.SplitSeq(stock, ",") {
		words := strings.Fields(strings.ReplaceAll(line, `""`, "-"))
		want := strings.ReplaceAll(words[1]+" "+words[2], "-", "")
		if got[words[0]] != want {
			t.Errorf("call %s has %q, want %q", words[0], got[words[0]], want)
		}
		delete(got, words[0])
	}
	if len(got) > 0 {
		t.Errorf("calls without a signature in the protocol: %v", got)
	}
}

func TestTablesRefuseNonsense(t *testing.T) {
	for _, line := range []string{"2.40 1 C_X", "2.40 1 C_X(session)", "2.40 1 C_X(thing hThing)", "2.40 1 C_X(session hSession) sometimes", "1 C_X(session hSession)"} {
		if _, err := parseFunction(line); err == nil {
			t.Errorf("%q was read", line)
		}
	}
	var n numbers
	for _, words := range []string{"AES 1080 none", "AES 1080 bytes n0", "AES zz none n0", "AES 1080 none n7"} {
		if n.readMechanism(strings.Fields(words)) == nil {
			t.Errorf("%q was read", words)
		}
	}
	if n.readAttribute(strings.Fields("LABEL 3 text")) == nil {
		t.Error("an attribute of no class was read")
	}
}

func TestEveryFunctionIsInItsLists(t *testing.T) {
	functions, err := readFunctions()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, f := range functions {
		counts[f.since]++
	}
	// The counts are those of the OASIS headers.
	if counts["2.40"] != 68 || counts["3.0"] != 24 || counts["3.2"] != 12 {
		t.Errorf("functions by version %v, want 68, 24 and 12", counts)
	}
}
