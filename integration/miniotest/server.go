// Package miniotest runs the pinned MinIO server for tests: a real process on a
// free loopback port with its data in a temporary folder. A test that asks for
// it never skips; without the server it fails and says why.
package miniotest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// readyWithin is generous: a loaded machine is no failure.
const readyWithin = 2 * time.Minute

// Server is a running MinIO. Its methods fail the test instead of returning
// errors and are not safe for concurrent use, except Host and the keys.
type Server struct {
	AccessKey string
	SecretKey string

	t       testing.TB
	host    string // 127.0.0.1:PORT, kept over restarts
	data    string
	home    string
	process *process
}

type process struct {
	cmd    *exec.Cmd
	output output
	done   chan struct{} // closed when the process has ended
}

// Start starts a server of its own for the test and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		AccessKey: "test" + strings.ToLower(rand.Text()[:12]),
		SecretKey: rand.Text(),
		t:         t,
		data:      t.TempDir(),
		home:      t.TempDir(),
	}
	t.Cleanup(s.Stop)
	for range 5 { // the free port may be taken by another before the server binds it
		s.host = freeAddress(t)
		if s.run() == nil {
			return s
		}
	}
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Host returns HOST:PORT.
func (s *Server) Host() string { return s.host }

// Endpoint returns http://HOST:PORT.
func (s *Server) Endpoint() string { return "http://" + s.host }

// Data returns the folder where the server keeps its data, for tests that damage it.
func (s *Server) Data() string { return s.data }

// Env returns NAME=VALUE pairs with the server's keys for a child process, as
// both drivers read them.
func (s *Server) Env() []string {
	return []string{
		"MINIO_ACCESS_KEY=" + s.AccessKey, "MINIO_SECRET_KEY=" + s.SecretKey,
		"AWS_ACCESS_KEY_ID=" + s.AccessKey, "AWS_SECRET_ACCESS_KEY=" + s.SecretKey,
		"AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true",
	}
}

// MinioLocation returns the LOCATION of a bucket and prefix for package minio.
func (s *Server) MinioLocation(bucketAndPrefix string) string {
	return "minio://" + s.host + "/" + bucketAndPrefix + "?tls=false"
}

// S3Location returns the LOCATION of a bucket and prefix for package s3.
func (s *Server) S3Location(bucketAndPrefix string) string {
	return "s3://" + bucketAndPrefix + "?region=us-east-1&endpoint=" + s.Endpoint()
}

// CreateBucket makes a bucket.
func (s *Server) CreateBucket(name string) {
	s.t.Helper()
	s.makeBucket(name, client.MakeBucketOptions{})
}

// CreateLockedBucket makes a bucket with object lock that retains every object
// in compliance mode for a day. Nothing can delete them until the server's data
// is removed.
func (s *Server) CreateLockedBucket(name string) {
	s.t.Helper()
	c := s.makeBucket(name, client.MakeBucketOptions{ObjectLocking: true})
	mode, days, unit := client.Compliance, uint(1), client.Days
	if err := c.SetObjectLockConfig(context.Background(), name, &mode, &days, &unit); err != nil {
		s.t.Fatalf("miniotest: lock bucket %s: %v", name, err)
	}
}

// CreateVersionedBucket makes a bucket that keeps versions.
func (s *Server) CreateVersionedBucket(name string) {
	s.t.Helper()
	c := s.makeBucket(name, client.MakeBucketOptions{})
	if err := c.EnableVersioning(context.Background(), name); err != nil {
		s.t.Fatalf("miniotest: enable versions of bucket %s: %v", name, err)
	}
}

func (s *Server) makeBucket(name string, options client.MakeBucketOptions) *client.Client {
	s.t.Helper()
	c := s.Client()
	if err := c.MakeBucket(context.Background(), name, options); err != nil {
		s.t.Fatalf("miniotest: make bucket %s: %v", name, err)
	}
	return c
}

// Client returns MinIO's own client with the server's keys, for tests that look
// behind the drivers.
func (s *Server) Client() *client.Client {
	s.t.Helper()
	c, err := client.New(s.host, &client.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: "us-east-1"})
	if err != nil {
		s.t.Fatalf("miniotest: %v", err)
	}
	return c
}

// Stop kills the server, as an outage would; its data stays. Stopping twice is
// fine.
func (s *Server) Stop() {
	if s.process == nil {
		return
	}
	s.process.cmd.Process.Kill()
	<-s.process.done
	s.process = nil
}

// Restart starts the server again on the same port with the same data, after
// stopping it if it runs, and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	if err := s.run(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) run() error {
	path, err := Binary()
	if err != nil {
		s.t.Fatalf("miniotest: %v", err)
	}
	p := &process{cmd: exec.Command(path, "server", "--quiet", "--address", s.host, "--console-address", "127.0.0.1:0", s.data), done: make(chan struct{})}
	p.cmd.Dir = s.home
	p.cmd.Env = s.environment()
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	dieWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		s.t.Fatalf("miniotest: start the MinIO server: %v", err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	s.process = p
	if err := s.waitReady(); err != nil {
		s.Stop()
		return fmt.Errorf("miniotest: %w; it said:\n%s", err, p.output.String())
	}
	return nil
}

// environment is the server's own: nothing of the user's settings for MinIO.
func (s *Server) environment() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + s.home,
		"TMPDIR=" + s.home,
		"MINIO_ROOT_USER=" + s.AccessKey,
		"MINIO_ROOT_PASSWORD=" + s.SecretKey,
		"MINIO_BROWSER=off",
		"MINIO_UPDATE=off",
		"MINIO_CI_CD=1", // a root disk will do
		"MINIO_CONFIG_DIR=" + filepath.Join(s.home, "config"),
	}
}

func (s *Server) waitReady() error {
	for deadline := time.Now().Add(readyWithin); time.Now().Before(deadline); {
		select {
		case <-s.process.done:
			return fmt.Errorf("the MinIO server ended: %v", s.process.cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
		if s.healthy() {
			return nil
		}
	}
	return fmt.Errorf("the MinIO server at %s was not ready within %v", s.host, readyWithin)
}

// healthy asks for the buckets with our keys: the port might have gone to
// another server, and health alone comes before the users are loaded.
func (s *Server) healthy() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+"/minio/health/cluster", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false
	}
	_, err = s.Client().ListBuckets(ctx)
	return err == nil
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("miniotest: find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// output collects what the server says.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
