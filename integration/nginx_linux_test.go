package integration

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// opensslConf is for the engine of libp11 with the stock module.
const opensslConf = `openssl_conf = init
[init]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
MODULE_PATH = %s
PIN = %s
[req]
distinguished_name = name
[name]
`

const nginxConf = `worker_processes 4;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log;
ssl_engine pkcs11;
env OPENSSL_CONF;
env P11_KIT_SERVER_ADDRESS;
events {}
http {
  access_log off;
  server {
    listen unix:%[1]s/nginx.sock ssl;
    ssl_certificate %[1]s/web.pem;
    ssl_certificate_key "engine:pkcs11:%[2]s";
    location / { return 200 "signed by the cluster\n"; }
  }
}
`

// TestNginxUnderLoadOutlivesAnHSM: four workers, forked from the process that found the
// key, sign the handshakes of many clients at once. An HSM is killed in their middle, and
// no handshake fails.
func TestNginxUnderLoadOutlivesAnHSM(t *testing.T) {
	t.Parallel()
	needPackages(t)
	c := newCluster(t, newRaceMachine(t), "east", 3)
	_, socket := c.startClient(t)
	web := c.startNginx(t, socket)
	const clients, each = 16, 20
	const killAfter = clients * each / 3
	var good atomic.Int64
	var all sync.WaitGroup
	half := make(chan struct{})
	for range clients {
		all.Go(func() {
			for range each {
				if err := web.handshake(); err != nil {
					t.Errorf("handshake after %d good ones: %v", good.Load(), err)
					return
				}
				if good.Add(1) == killAfter {
					close(half)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); all.Wait() }()
	select {
	case <-half:
		c.hsms[0].kill()
	case <-done:
	}
	<-done
	if n := good.Load(); n != clients*each {
		t.Errorf("%d good handshakes, want %d", n, clients*each)
	}
}

// webServer is an nginx with a certificate that clients trust.
type webServer struct {
	socket string
	trust  *x509.CertPool
	key    *ecdsa.PublicKey
}

// handshake makes a connection of its own, without a session of before: the server signs.
func (w *webServer) handshake() error {
	raw, err := net.DialTimeout("unix", w.socket, deadline)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(deadline)); err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: w.trust, ServerName: "localhost"})
	if err := conn.Handshake(); err != nil {
		return err
	}
	if got, ok := conn.ConnectionState().PeerCertificates[0].PublicKey.(*ecdsa.PublicKey); !ok || !got.Equal(w.key) {
		return errors.New("the server has another key")
	}
	return conn.Close()
}

// startNginx makes a key and its certificate in the cluster, and starts nginx with them.
func (c *testCluster) startNginx(t *testing.T, socket string) *webServer {
	t.Helper()
	if out, err := c.tool(t, socket, "--login", "--pin", alicePIN, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "web", "--id", "01"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const key = "pkcs11:object=web;type=private"
	dir := c.machine.dir
	must(t, os.WriteFile(c.path("openssl.cnf"), fmt.Appendf(nil, opensslConf, stockModule, alicePIN), 0o600))
	must(t, os.WriteFile(c.path("nginx.conf"), fmt.Appendf(nil, nginxConf, dir, key), 0o600))
	env := append(c.env, "P11_KIT_SERVER_ADDRESS=unix:path="+socket, "OPENSSL_CONF="+c.path("openssl.cnf"))
	req := exec.Command("openssl", "req", "-x509", "-engine", "pkcs11", "-keyform", "engine", "-key", key, "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost", "-days", "30", "-out", c.path("web.pem"))
	req.Dir, req.Env = dir, env
	if out, err := req.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w := &webServer{socket: c.path("nginx.sock"), trust: x509.NewCertPool()}
	block, _ := pem.Decode([]byte(read(t, c.path("web.pem"))))
	if block == nil {
		t.Fatal("openssl wrote no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	w.trust.AddCert(cert)
	var ok bool
	if w.key, ok = cert.PublicKey.(*ecdsa.PublicKey); !ok {
		t.Fatalf("a certificate for a %T", cert.PublicKey)
	}
	var log output
	self, err := user.Current()
	must(t, err)
	cmd := exec.Command("nginx", "-g", "user "+self.Username+";", "-p", dir, "-c", c.path("nginx.conf"))
	cmd.Dir, cmd.Env, cmd.SysProcAttr, cmd.Stderr = dir, env, childAttributes(), &log
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	for limit := time.Now().Add(deadline); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", w.socket)
		if err == nil {
			conn.Close()
			return w
		}
		if time.Now().After(limit) {
			t.Fatalf("nginx does not listen: %v\n%s", err, log.String())
		}
	}
}
