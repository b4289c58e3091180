package pinned

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	client "github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Server is a running S3 server, of whatever make: a process on a loopback port
// with its data in a temporary folder. Its methods fail the test instead of
// returning errors and are not safe for concurrent use, except Host and the keys.
type Server struct {
	AccessKey string
	SecretKey string

	t         testing.TB
	make      Make
	host      string // 127.0.0.1:PORT, kept over restarts
	data      string
	home      string
	authority *Authority // nil: no TLS
	process   *Process
}

// Make is what differs between servers.
type Make struct {
	Binary func() (string, error)
	// Health is the path that answers 200 once the server serves.
	Health string
	// Prepare makes what must be there before the first start; may be nil.
	Prepare func(l Launch) error
	// Arguments and Environment run the server; PATH, HOME and TMPDIR are set.
	Arguments   func(l Launch) []string
	Environment func(l Launch) []string
}

// Launch is what a Make is told about one server.
type Launch struct {
	Host                 string
	Data                 string // an empty folder at the first start
	Home                 string // a folder for whatever else the server keeps
	AccessKey, SecretKey string
	CertFile, KeyFile    string // of TLS; empty without
}

// StartServer starts a server of its own for the test and stops it when the test
// ends. With an authority it speaks TLS only. The server keeps its data in the
// folder data, in one of its own if that is empty.
func StartServer(t testing.TB, m Make, a *Authority, data string) *Server {
	t.Helper()
	s := &Server{AccessKey: "test" + strings.ToLower(rand.Text()[:12]), SecretKey: rand.Text(), t: t, make: m, data: data, home: t.TempDir(), authority: a}
	if s.data == "" {
		s.data = t.TempDir()
	}
	if a != nil {
		a.Issue(s.home, time.Now().Add(24*time.Hour), "127.0.0.1", "localhost")
	}
	if m.Prepare != nil {
		if err := m.Prepare(s.launch()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.Stop)
	for range 5 { // the free port may be taken by another before the server binds it
		s.host = FreeAddress(t)
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

// Endpoint returns http://HOST:PORT, https:// with TLS.
func (s *Server) Endpoint() string {
	if s.authority != nil {
		return "https://" + s.host
	}
	return "http://" + s.host
}

// CA returns the PEM file of the authority to trust, "" without TLS.
func (s *Server) CA() string {
	if s.authority == nil {
		return ""
	}
	return s.authority.File()
}

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
	query := "?tls=false"
	if s.authority != nil {
		query = "?ca=" + url.QueryEscape(s.CA())
	}
	return "minio://" + s.host + "/" + bucketAndPrefix + query
}

// S3Location returns the LOCATION of a bucket and prefix for package s3.
func (s *Server) S3Location(bucketAndPrefix string) string {
	location := "s3://" + bucketAndPrefix + "?region=us-east-1&endpoint=" + s.Endpoint()
	if s.authority != nil {
		location += "&ca=" + url.QueryEscape(s.CA())
	}
	return location
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
		s.t.Fatalf("lock bucket %s: %v", name, err)
	}
}

// CreateLockableBucket makes a bucket with object lock that locks nothing by
// itself.
func (s *Server) CreateLockableBucket(name string) {
	s.t.Helper()
	s.makeBucket(name, client.MakeBucketOptions{ObjectLocking: true})
}

// Restricted returns keys that may do no more than a policy allows:
// temporary ones, which the server's own STS hands out (MinIO).
func (s *Server) Restricted(policy string) (access, secret, session string) {
	s.t.Helper()
	sts := &credentials.STSAssumeRole{Client: &http.Client{Transport: s.transport()}, STSEndpoint: s.Endpoint(), Options: credentials.STSAssumeRoleOptions{
		AccessKey: s.AccessKey, SecretKey: s.SecretKey, Policy: policy, DurationSeconds: 3600, Location: "us-east-1",
	}}
	v, err := sts.RetrieveWithCredContext(nil)
	if err != nil {
		s.t.Fatalf("assume a role: %v", err)
	}
	return v.AccessKeyID, v.SecretAccessKey, v.SessionToken
}

// CreateVersionedBucket makes a bucket that keeps versions.
func (s *Server) CreateVersionedBucket(name string) {
	s.t.Helper()
	c := s.makeBucket(name, client.MakeBucketOptions{})
	if err := c.EnableVersioning(context.Background(), name); err != nil {
		s.t.Fatalf("enable versions of bucket %s: %v", name, err)
	}
}

func (s *Server) makeBucket(name string, options client.MakeBucketOptions) *client.Client {
	s.t.Helper()
	c := s.Client()
	if err := c.MakeBucket(context.Background(), name, options); err != nil {
		s.t.Fatalf("make bucket %s: %v", name, err)
	}
	return c
}

// Client returns MinIO's own client with the server's keys, for tests that look
// behind the drivers.
func (s *Server) Client() *client.Client {
	s.t.Helper()
	c, err := client.New(s.host, &client.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: "us-east-1", Secure: s.authority != nil, Transport: s.transport()})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *Server) transport() *http.Transport {
	if s.authority != nil {
		return s.authority.Transport()
	}
	return http.DefaultTransport.(*http.Transport)
}

// Stop kills the server, as an outage would; its data stays. Stopping twice is
// fine.
func (s *Server) Stop() {
	if s.process != nil {
		s.process.Kill()
		s.process = nil
	}
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

func (s *Server) launch() Launch {
	l := Launch{Host: s.host, Data: s.data, Home: s.home, AccessKey: s.AccessKey, SecretKey: s.SecretKey}
	if s.authority != nil {
		l.CertFile, l.KeyFile = s.home+"/public.crt", s.home+"/private.key"
	}
	return l
}

// run starts the process with an environment of its own: nothing of the user's
// settings for the server.
func (s *Server) run() error {
	path, err := s.make.Binary()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(path, s.make.Arguments(s.launch())...)
	cmd.Dir = s.home
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "TMPDIR=" + s.home}, s.make.Environment(s.launch())...)
	s.process, err = Start(cmd, s.healthy)
	return err
}

// healthy asks for the buckets with our keys too: the port might have gone to
// another server, and health alone comes before the users are loaded.
func (s *Server) healthy() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint()+s.make.Health, nil)
	if err != nil {
		return false
	}
	resp, err := s.transport().RoundTrip(req)
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
