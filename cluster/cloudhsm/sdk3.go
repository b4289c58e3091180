package cloudhsm

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/hsmbackup/hsmbackup/cluster"
)

// sdk3Policy is Client SDK 3's: the number of copies that creation takes, 1 if the
// file does not say; use is never checked.
func sdk3Policy(doc *value) (cluster.Policy, error) {
	p := cluster.Policy{MinCopies: 1, Setting: settingMinimumNodes}
	if doc.kind != '{' {
		return p, badFile("it holds %s; want an object", doc.kindName())
	}
	client := field{of: doc}.get("client")
	if err := client.object(); err != nil {
		return p, err
	}
	nodes := client.get(settingMinimumNodes)
	if nodes.of == nil {
		return p, nil
	}
	n, ok := nodes.of.integer()
	if !ok || n < 1 || n > MaxHSMs {
		return p, nodes.wrong(fmt.Sprintf("a whole number from 1 to %d, the HSMs that must hold a new key", MaxHSMs))
	}
	p.MinCopies = n
	return p, nil
}

// LoadSDK3 reads Client SDK 3's file; an empty one if there is none.
func LoadSDK3(path string) (*File, error) { return load(path, (*File).checkSDK3) }

// load reads and checks a file; an empty one if there is none.
func load(path string, check func(*File) error) (*File, error) {
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return New(), nil
	}
	if err != nil {
		return nil, err
	}
	f, err := parseFile(b)
	if err == nil {
		err = check(f)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func (f *File) checkSDK3() error {
	if _, err := sdk3Policy(f.doc); err != nil {
		return err
	}
	server := field{of: f.doc}.get("server")
	if err := server.object(); err != nil {
		return err
	}
	return server.strings("hostname")
}

// ApplySDK3 sets the address of an HSM and the number of copies that creation
// takes; what is empty or 0 stays. It is idempotent. ErrFile for what makes no sense.
func (f *File) ApplySDK3(address string, minimumNodes int) error {
	if minimumNodes < 0 || minimumNodes > MaxHSMs {
		return badFile("%s %d: want 1 to %d", settingMinimumNodes, minimumNodes, MaxHSMs)
	}
	if minimumNodes > 0 {
		client := f.doc.child("client")
		if was, ok := client.get(settingMinimumNodes).integer(); !ok || was != minimumNodes {
			client.set(settingMinimumNodes, newInt(minimumNodes))
		}
	}
	if address == "" {
		return nil
	}
	host, port, err := hostPort(address)
	if err != nil {
		return err
	}
	server := f.doc.child("server")
	setText(server, "hostname", host)
	if was, ok := server.get("port").integer(); !ok || was != port {
		server.set("port", newInt(port))
	}
	return nil
}
