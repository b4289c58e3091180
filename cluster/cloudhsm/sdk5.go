package cloudhsm

import (
	"fmt"
	"strings"

	"github.com/hsmbackup/hsmbackup/cluster"
)

// defaultPort is that of CloudHSM's HSMs.
const defaultPort = 2223

// File is the configuration file of one component of Client SDK 5, or that of
// Client SDK 3 (LoadSDK3, ApplySDK3).
type File struct {
	doc  *value
	was  []byte // as read
	same *value // what was says
}

// Parse reads a file's contents. ErrFile, naming the setting, if one has a type or
// value that makes no sense; what is not known is kept as it is.
func Parse(b []byte) (*File, error) {
	f, err := parseFile(b)
	if err != nil {
		return nil, err
	}
	return f, f.check()
}

func parseFile(b []byte) (*File, error) {
	doc, err := parse(b)
	if err != nil {
		return nil, err
	}
	same, err := parse(b)
	return &File{doc: doc, was: b, same: same}, err
}

// New is the file of a component that has none yet.
func New() *File { return &File{doc: &value{kind: '{'}} }

// Bytes encodes the file: byte for byte as it was read if no setting has changed,
// otherwise with two spaces of indentation.
func (f *File) Bytes() []byte {
	if f.same != nil && f.doc.equal(f.same) {
		return f.was
	}
	return f.doc.encode()
}

// check checks the types of all that is known of the format.
func (f *File) check() error {
	if f.doc.kind != '{' {
		return badFile("it holds %s; want an object", f.doc.kindName())
	}
	top := field{of: f.doc}
	logging, clusters := top.get("logging"), top.get("clusters")
	if err := logging.object(); err != nil {
		return err
	}
	if err := logging.strings("log_type", "log_file", "log_level", "log_interval"); err != nil {
		return err
	}
	if err := clusters.array(); err != nil {
		return err
	}
	for i := range f.entries() {
		if err := checkEntry(clusters.item(i)); err != nil {
			return err
		}
	}
	return nil
}

func checkEntry(entry field) error {
	if err := entry.object(); err != nil {
		return err
	}
	in := entry.get("cluster")
	if in.of == nil {
		return badFile("%s is missing", in.path)
	}
	options := in.get("options")
	for _, err := range []error{
		entry.strings("type"), in.object(), in.strings("hsm_ca_file", "cluster_id", "client_cert_path", "client_key_path"),
		options.object(), options.bools(optionBools...), options.strings(optionRetryMode), checkServers(in.get("servers")),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkServers(servers field) error {
	if err := servers.array(); err != nil || servers.of == nil {
		return err
	}
	for i := range servers.of.items {
		s := servers.item(i)
		if err := s.object(); err != nil {
			return err
		}
		if err := s.strings("hostname"); err != nil {
			return err
		}
		if err := s.bools("enable"); err != nil {
			return err
		}
		if port := s.get("port"); port.of != nil {
			if n, ok := port.of.integer(); !ok || n < 1 || n > 65535 {
				return port.wrong("a port from 1 to 65535")
			}
		}
	}
	return nil
}

// entries are the elements of clusters.
func (f *File) entries() []*value {
	if c := f.doc.get("clusters"); c != nil {
		return c.items
	}
	return nil
}

func clusterIDOf(entry *value) string {
	id, _ := entry.get("cluster").get("cluster_id").text()
	return id
}

// entry finds the entry of a cluster: by its id, or the only one there is. nil if
// there is none at all; ErrFile if there are several and none has the id.
func (f *File) entry(clusterID string) (*value, error) {
	entries, ids := f.entries(), []string{}
	for _, e := range entries {
		if id := clusterIDOf(e); id != "" && id == clusterID {
			return e, nil
		}
		ids = append(ids, fmt.Sprintf("%q", clusterIDOf(e)))
	}
	switch len(entries) {
	case 0:
		return nil, nil
	case 1:
		return entries[0], nil
	}
	return nil, badFile("clusters has %d entries, of %s, and none with cluster_id %q", len(entries), strings.Join(ids, ", "), clusterID)
}

// Policy is what the component asks of a cluster: two copies, to create a key and
// to use it, unless the check is disabled.
func (f *File) Policy(clusterID string) (cluster.Policy, error) {
	e, err := f.entry(clusterID)
	if err != nil {
		return cluster.Policy{}, err
	}
	if off, _ := e.get("cluster").get("options").get(settingDisableCheck).boolean(); off {
		return cluster.Policy{MinCopies: 1}, nil
	}
	return cluster.DefaultPolicy, nil
}
