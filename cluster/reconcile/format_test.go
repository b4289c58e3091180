package reconcile

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// vectorRows returns the table rows of FORMAT.md's vectors, without quotes. An
// independent program worked them out.
func vectorRows(t *testing.T) (rows []string) {
	t.Helper()
	b, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, vectors, _ := strings.Cut(string(b), "\n## Vectors\n")
	for line := range strings.Lines(vectors) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") {
			rows = append(rows, strings.ReplaceAll(line, "`", ""))
		}
	}
	return rows
}

// The package computes what FORMAT.md says, row by row.
func TestFormatVectors(t *testing.T) {
	keys := hsm.FingerprintKeys{}
	for i := range keys.Root {
		keys.Root[i], keys.Sketch[i/2] = byte(i), byte(i/2)
	}
	rows, root, prefix := vectorRows(t), NewRootState(keys), NewPrefix(keys, 6)
	got := []string{"| item | seed | check | cells |", "|---|---|---|---|"}
	for _, row := range rows[2:5] {
		b, err := hex.DecodeString(strings.Fields(row)[1])
		if err != nil {
			t.Fatal(err)
		}
		item := Item(b)
		root.Add(item)
		prefix.Add(item)
		seed, check := newHasher(keys).hash(&item)
		cells := ""
		for m := newMapping(seed); m.index < 100; m.next() {
			cells += fmt.Sprint(m.index, " ")
		}
		got = append(got, fmt.Sprintf("| %x | %016x | %016x | %s|", item, seed, check, cells))
	}
	got = append(got, "| count | sum |", "|---|---|", fmt.Sprintf("| %d | %x |", root.Root().Count, root.Root().Sum))
	got = append(got, "| cell | item | check | count |", "|---|---|---|---|")
	for i, c := range prefix.Cells() {
		got = append(got, fmt.Sprintf("| %d | %x | %016x | %d |", i, c.Item, c.Check, c.Count))
	}
	if diff := cmp.Diff(rows, got); diff != "" {
		t.Errorf("(-FORMAT.md +computed):\n%s", diff)
	}
}
