package integration

import (
	"go/ast"
	"path/filepath"
	"regexp"
	"testing"
)

// TestAcceptanceTableNamesTests: every test that the tables of acceptance name is
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
	for _, folder := range []string{"cluster", "backup"} {
		named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(read(t, filepath.Join(repository(), folder, "ACCEPTANCE.md")), -1)
		if len(named) < 50 {
			t.Errorf("the table of %s names only %d tests", folder, len(named))
		}
		for _, n := range named {
			if !there[n[1]] {
				t.Errorf("%s: there is no %s", folder, n[1])
			}
		}
	}
}
