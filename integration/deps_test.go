package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/hsmbackup/hsmbackup"

// mayImport says which packages of the module each package may import, itself
// aside. "x/..." is x and what is below it. The first line that fits a package
// is its rule; a package without a line is an error.
var mayImport = []struct {
	pkg string
	may []string
}{
	{"cmd/...", []string{"clone", "synckey", "backup", "cluster", "cluster/cloudhsm", "cluster/hsm", "cluster/metrics", "cluster/pkcs11", "cluster/profile", "cluster/server/...", "storage", "storage/open"}},
	{"clone", []string{"synckey", "backup", "cluster", "cluster/keytest", "cluster/hsm", "cluster/hsm/soft/mech", "cluster/profile", "cluster/reconcile", "cluster/server", "storage"}},
	{"synckey", []string{"cluster", "cluster/hsm", "cluster/keytest", "cluster/reconcile"}},
	{"cluster/keytest", []string{"cluster", "cluster/hsm", "cluster/hsm/soft/mech"}},
	{"backup/...", []string{"backup/format", "cluster/hsm", "cluster/reconcile", "storage"}},
	{"cluster", []string{"cluster/hsm", "cluster/profile", "cluster/reconcile", "cluster/rpc", "cluster/rpc/pki"}},
	{"cluster/cloudhsm", []string{"cluster", "cluster/profile"}},
	{"cluster/server", []string{"cluster/hsm", "cluster/hsm/soft", "cluster/metrics", "cluster/profile", "cluster/reconcile", "cluster/rpc", "cluster/rpc/pki", "cluster/server/audit", "cluster/server/seal"}},
	{"cluster/server/audit", nil},
	{"cluster/server/seal", []string{"cluster/hsm"}},
	{"cluster/metrics", nil},
	{"cluster/pkcs11/ck", nil},
	{"cluster/pkcs11/rpc", []string{"cluster/pkcs11/ck"}},
	{"cluster/pkcs11/module/...", nil},
	{"cluster/pkcs11", []string{"cluster", "cluster/hsm", "cluster/metrics", "cluster/pkcs11/...", "cluster/profile"}},
	{"cluster/profile", []string{"cluster/hsm"}},
	{"cluster/rpc/...", []string{"cluster/hsm", "cluster/rpc/..."}},
	{"cluster/reconcile/...", []string{"cluster/hsm", "cluster/reconcile"}},
	{"cluster/hsm", nil},
	{"cluster/hsm/hsmtest", []string{"cluster/hsm", "cluster/reconcile"}},
	{"cluster/hsm/soft/mech", nil},
	{"cluster/hsm/soft", []string{"cluster/hsm", "cluster/hsm/soft/mech", "cluster/reconcile"}},
	{"storage/open", []string{"storage", "storage/file", "storage/minio", "storage/s3"}},
	{"storage/internal/remotetest", []string{"storage", "storage/internal/remote", "storage/storagetest", "integration/..."}},
	{"storage/...", []string{"storage", "storage/internal/..."}},
	{"integration/...", []string{"integration/pinned", "integration/moduletest"}},
}

// onlyFrom says who may import a package of the module, whatever mayImport says.
var onlyFrom = []struct {
	pkg  string
	from []string
}{
	{"cluster/server/...", []string{"cmd/...", "clone", "cluster/server/..."}},
	{"cluster/rpc/pb", []string{"cluster/rpc"}},
}

// testSupport is imported by tests only.
var testSupport = []string{"cluster/hsm/hsmtest", "cluster/reconcile/reconciletest", "storage/storagetest", "storage/internal/remotetest", "integration/..."}

// doors says through which packages a dependency comes in.
var doors = []struct {
	dependency string
	from       []string
}{
	{"github.com/aws/", []string{"storage/s3"}},
	{"github.com/minio/minio-go", []string{"storage/minio", "storage/internal/remotetest", "integration/pinned"}},
	{"github.com/klauspost/compress", []string{"backup/format"}},
	{"google.golang.org/", []string{"cluster/rpc/..."}},
	{"github.com/cockroachdb/", []string{"cluster/hsm/soft"}},
	{"filippo.io/mldsa", []string{"cluster/hsm/soft/mech"}},
	{"filippo.io/bigmod", []string{"cluster/hsm/soft/mech"}},
	{"filippo.io/age", []string{"backup", "backup/format", "cluster/server/seal", "clone"}},
	{"github.com/prometheus/", []string{"cluster/metrics"}},
	{"golang.org/x/net/", []string{"cluster/metrics"}},
	{"github.com/urfave/cli", []string{"cmd/..."}},
	{"github.com/goccy/go-yaml", []string{"cluster/profile", "cluster/server"}},
	{"github.com/anishathalye/porcupine", []string{"integration/history"}},
}

// noNetwork lists packages that do no network I/O. They may use of package net
// what only handles text.
var noNetwork = []string{"cluster/hsm/...", "cluster/reconcile/...", "backup/...", "synckey"}

var netText = []string{"SplitHostPort", "JoinHostPort", "ParseIP"}

// sourceFile is one Go file of the module.
type sourceFile struct {
	path    string // relative to the repository
	pkg     string // folder, relative
	test    bool
	syntax  *ast.File
	imports []string
}

func (f sourceFile) is(patterns []string) bool { return matches(f.pkg, patterns) }

// matches tells whether a package fits one of the patterns.
func matches(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		base, below := strings.CutSuffix(p, "/...")
		return pkg == base || below && strings.HasPrefix(pkg, base+"/")
	})
}

// sources parses every Go file of the module, so that the result of the test is
// of the files as they are and not of what a build left in a cache.
func sources(t *testing.T) []sourceFile {
	t.Helper()
	root := repository()
	var out []sourceFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parse(root, path)
		out = append(out, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 100 {
		t.Fatalf("found only %d files below %s", len(out), root)
	}
	return out
}

func parse(root, path string) (sourceFile, error) {
	syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return sourceFile{}, err
	}
	relative, err := filepath.Rel(root, path)
	if err != nil {
		return sourceFile{}, err
	}
	f := sourceFile{path: relative, pkg: filepath.ToSlash(filepath.Dir(relative)), test: strings.HasSuffix(path, "_test.go"), syntax: syntax}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return f, err
		}
		f.imports = append(f.imports, imported)
	}
	return f, nil
}

// inModule returns the package of the module that an import names.
func inModule(imported string) (string, bool) { return strings.CutPrefix(imported, module+"/") }

func TestImportsPointOneWay(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		i := slices.IndexFunc(mayImport, func(r struct {
			pkg string
			may []string
		}) bool {
			return matches(f.pkg, []string{r.pkg})
		})
		if i < 0 {
			t.Errorf("%s: package %s has no rule in mayImport", f.path, f.pkg)
			continue
		}
		for _, imported := range f.imports {
			if pkg, ok := inModule(imported); ok && !matches(pkg, mayImport[i].may) {
				t.Errorf("%s imports %s; %s may import %v", f.path, pkg, f.pkg, mayImport[i].may)
			}
		}
	}
}

func TestInnerPackagesAreImportedByTheirOwners(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || f.is(testSupport) {
			continue
		}
		for _, imported := range f.imports {
			pkg, ok := inModule(imported)
			if !ok {
				continue
			}
			for _, r := range onlyFrom {
				if matches(pkg, []string{r.pkg}) && !f.is(r.from) {
					t.Errorf("%s imports %s, which is for %v", f.path, pkg, r.from)
				}
			}
			if matches(pkg, testSupport) {
				t.Errorf("%s imports %s, which is for tests", f.path, pkg)
			}
		}
	}
}

func TestEachDependencyHasOneDoor(t *testing.T) {
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		for _, imported := range f.imports {
			for _, d := range doors {
				if strings.HasPrefix(imported, d.dependency) && !f.is(d.from) {
					t.Errorf("%s imports %s, whose door is %v", f.path, imported, d.from)
				}
			}
		}
	}
}

func TestHSMReconcileAndBackupDoNoNetworkIO(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || !f.is(noNetwork) {
			continue
		}
		for _, imported := range f.imports {
			if strings.HasPrefix(imported, "net/") || imported == "golang.org/x/net" || strings.HasPrefix(imported, "google.golang.org/grpc") {
				t.Errorf("%s imports %s", f.path, imported)
			}
		}
		if !slices.Contains(f.imports, "net") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "net" && !slices.Contains(netText, sel.Sel.Name) {
				t.Errorf("%s uses net.%s", f.path, sel.Sel.Name)
			}
			return true
		})
	}
}
