package integration

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestAnHSMMovesUnderLoad: it is ended in order and started at another address
// while callers create keys, use them and sign. No call fails; and others, clients
// with an old profile too, find it where it is now.
func TestAnHSMMovesUnderLoad(t *testing.T) {
	t.Parallel()
	c := newCluster(t, newMachine(t), "east", 3)
	client := open(t, c)
	defer client.Close()
	load := startLoad(t, client)
	load.advance(t)
	must(t, c.hsms[1].cmd.Process.Signal(syscall.SIGTERM))
	<-c.hsms[1].done
	address := c.move(t, 1)
	c.hsms[1] = c.start(t, "hsm", "serve", c.hsmDir(1))
	c.hsms[1].waitReady(t)
	eventually(t, "it is not found at its new address", func() bool {
		for _, h := range c.info(t).HSMs {
			if h.Name == "hsm-2" {
				return h.Address == address && h.State == "ACTIVE"
			}
		}
		return false
	})
	load.advance(t)
	t.Logf("%d calls", load.end(t))
	c.wait(t)
}

// move gives an HSM that is down another address, and returns it.
func (c *testCluster) move(t testing.TB, i int) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	must(t, l.Close())
	path := filepath.Join(c.hsmDir(i), "hsm.yaml")
	b, err := os.ReadFile(path)
	must(t, err)
	var out []string
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, []byte("address:")) {
			line = fmt.Appendf(nil, "address: %s\n", address)
		}
		out = append(out, string(line))
	}
	must(t, os.WriteFile(path, []byte(strings.Join(out, "")), 0o644))
	return address
}

// load is callers at work.
type load struct {
	stop  context.CancelFunc
	calls atomic.Int64
	g     sync.WaitGroup
}

// startLoad starts a caller that creates and encrypts, and one that signs. Any call
// that fails fails the test.
func startLoad(t *testing.T, c *cluster.Cluster) *load {
	t.Helper()
	signer, err := c.Create(t.Context(), hsm.CreateRequest{
		Method: hsm.MethodGenerate, Token: true, Type: "ec", Curve: "secp256r1", Attributes: map[string]string{"sign": "true"}, Public: map[string]string{"verify": "true"},
	}, cluster.Policy{})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop}
	l.run(t, ctx, "create and encrypt", func(n int) error {
		made, err := c.Create(context.Background(), hsm.CreateRequest{
			Method: hsm.MethodGenerate, Token: true, Type: "aes", Size: 32, Attributes: map[string]string{"label": fmt.Sprint(n), "encrypt": "true"},
		}, cluster.Policy{})
		if err != nil {
			return fmt.Errorf("create: %w", err)
		}
		_, err = c.Use(context.Background(), hsm.Use{Kind: hsm.UseEncrypt, Key: made.Keys[0].Ref, Params: hsm.Params{Mechanism: "aes-gcm"}, Data: []byte("data")})
		return err
	})
	l.run(t, ctx, "sign", func(int) error {
		_, err := c.Use(context.Background(), hsm.Use{Kind: hsm.UseSign, Key: signer.Keys[0].Ref, Params: hsm.Params{Mechanism: "ecdsa", Hash: "sha256"}, Data: []byte("data")})
		return err
	})
	t.Cleanup(func() { stop(); l.g.Wait() })
	return l
}

func (l *load) run(t *testing.T, ctx context.Context, what string, call func(n int) error) {
	l.g.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			if err := call(n); err != nil {
				t.Errorf("%s, call %d: %v", what, n, err)
				return
			}
			l.calls.Add(1)
		}
	})
}

// advance waits for more calls.
func (l *load) advance(t testing.TB) {
	t.Helper()
	want := l.calls.Load() + 20
	eventually(t, "the callers stand still", func() bool { return l.calls.Load() >= want || t.Failed() })
}

func (l *load) end(t testing.TB) int64 {
	t.Helper()
	l.stop()
	l.g.Wait()
	return l.calls.Load()
}
