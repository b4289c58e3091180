package figures

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/integration/pinned"
)

// etcd is what creating keys is compared with: another store that answers once a
// majority of three members has a write on disk. As between HSMs and their
// callers, all connections are mutual TLS.
type etcd struct {
	authority *pinned.Authority
	cert, key string // of members and clients
	putter    string // the binary that puts
	endpoints []string
	pids      []int
	puts      int // so far, for new names
}

var etcdServer = pinned.Program{Module: "etcd", Package: "go.etcd.io/etcd/server/v3", Name: "etcd", Cost: "takes some minutes"}

// startEtcd starts three members as processes that write to the benchmark's disk.
func startEtcd(b *testing.B) *etcd {
	b.Helper()
	server, err := etcdServer.Binary()
	if err != nil {
		b.Fatal(err)
	}
	e := &etcd{authority: pinned.NewAuthority(b), putter: filepath.Join(filepath.Dir(mustBinary(b)), "etcd-put")}
	e.cert, e.key = e.authority.Issue(b.TempDir(), time.Now().Add(24*time.Hour), "127.0.0.1")
	build := exec.Command("go", "build", "-o", e.putter, "./put")
	build.Dir = filepath.Join("..", "etcd")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("go build ./put: %v\n%s", err, out)
	}
	var peers []string
	for i := range 3 {
		peers = append(peers, fmt.Sprintf("m%d=https://%s", i, pinned.FreeAddress(b)))
		e.endpoints = append(e.endpoints, "https://"+pinned.FreeAddress(b))
	}
	dir := b.TempDir()
	var members []*exec.Cmd
	for i := range 3 {
		_, peer, _ := strings.Cut(peers[i], "=")
		members = append(members, exec.Command(server, "--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("m%d", i)),
			"--listen-client-urls", e.endpoints[i], "--advertise-client-urls", e.endpoints[i],
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(peers, ","), "--log-level", "error",
			"--client-cert-auth", "--trusted-ca-file", e.authority.File(), "--cert-file", e.cert, "--key-file", e.key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file", e.authority.File(), "--peer-cert-file", e.cert, "--peer-key-file", e.key))
	}
	for i, cmd := range members {
		// A member alone is not healthy: only the last one is waited for.
		p, err := pinned.Start(cmd, func() bool { return i < 2 || e.healthy() })
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(p.Kill)
		e.pids = append(e.pids, cmd.Process.Pid)
	}
	return e
}

func (e *etcd) healthy() bool {
	pair, err := tls.LoadX509KeyPair(e.cert, e.key)
	if err != nil {
		return false
	}
	transport := e.authority.Transport()
	transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for _, url := range e.endpoints {
		reply, err := client.Get(url + "/health")
		if err != nil {
			return false
		}
		reply.Body.Close()
		if reply.StatusCode != http.StatusOK {
			return false
		}
	}
	return true
}

// put makes b.N puts of so many bytes each, and reports how many a second.
func (e *etcd) put(b *testing.B, callers, size int) {
	b.Helper()
	e.puts++
	cmd := exec.Command(e.putter, "-endpoints", strings.Join(e.endpoints, ","), "-ca", e.authority.File(), "-cert", e.cert, "-key", e.key, "-clients", fmt.Sprint(callers),
		"-n", fmt.Sprint(b.N), "-size", fmt.Sprint(size), "-prefix", fmt.Sprint(e.puts))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		b.Fatalf("put: %v\n%s", err, errOut.String())
	}
	var result struct {
		Puts    int64
		Seconds float64
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil || result.Puts != int64(b.N) {
		b.Fatalf("put printed %q: %v", out.String(), err)
	}
	b.ReportMetric(float64(b.N)/result.Seconds, "ops/s")
}
