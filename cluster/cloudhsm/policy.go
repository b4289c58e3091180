package cloudhsm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster"
)

// MaxHSMs is the number of HSMs a cluster can have.
const MaxHSMs = 28

// The settings that make a policy.
const (
	settingMinimumNodes = "create_object_minimum_nodes"
	settingDisableCheck = "disable_key_availability_check"
)

// LoadPolicy reads a configuration file of either kind and returns the durability
// policy it asks for. cluster names the entry of a file that has several: by
// cluster id; it may be anything if there is one entry only.
//
// ErrFile, naming file and setting, if the file is none, too large, or says
// something that makes no sense.
func LoadPolicy(path, clusterID string) (cluster.Policy, error) {
	b, err := readFile(path)
	if err != nil {
		return cluster.Policy{}, err
	}
	p, err := PolicyOf(b, filepath.Base(path), clusterID)
	if err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	if p.Setting != "" {
		p.Setting += " in " + path
	}
	return p, nil
}

// readFile reads a file, bounded. What is not a file, such as a pipe, is refused.
func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, badFile("not a regular file"))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := readBounded(io.Reader(f))
	if err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", path, err)
	}
	return b, nil
}

// PolicyOf returns the policy of a file's contents. It is Client SDK 3's if it has
// its sections or its name, and Client SDK 5's otherwise.
func PolicyOf(b []byte, name, clusterID string) (cluster.Policy, error) {
	doc, err := parse(b)
	if err != nil {
		return cluster.Policy{}, err
	}
	if doc.get("client") != nil || doc.get("clusters") == nil && strings.EqualFold(name, SDK3FileName) {
		return sdk3Policy(doc)
	}
	f := &File{doc: doc}
	if err := f.check(); err != nil {
		return cluster.Policy{}, err
	}
	return f.Policy(clusterID)
}
