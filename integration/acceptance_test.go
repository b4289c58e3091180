package integration

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"testing"
)

// TestAcceptanceTableNamesTests: every test that cluster/ACCEPTANCE.md names is
// there.
func TestAcceptanceTableNamesTests(t *testing.T) {
	there := map[string]bool{}
	for _, f := range sources(t) {
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test && fn.Recv == nil {
				there[fn.Name.Name] = true
			}
		}
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(read(t, filepath.Join(repository(), "cluster", "ACCEPTANCE.md")), -1)
	if len(named) < 50 {
		t.Errorf("the table names only %d tests", len(named))
	}
	for _, n := range named {
		if !there[n[1]] {
			t.Errorf("there is no %s", n[1])
		}
	}
}
