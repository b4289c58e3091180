package open_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/integration/miniotest"
	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/open"
)

// setEnv leaves no settings but the given ones to the drivers.
func setEnv(t *testing.T, pairs ...string) {
	t.Helper()
	empty := filepath.Join(t.TempDir(), "none")
	for _, name := range []string{
		"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
		"AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI",
	} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", empty)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", empty)
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
}

func TestGoodLocations(t *testing.T) {
	setEnv(t, "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret")
	folder := t.TempDir()
	for location, want := range map[string]string{
		folder:                                         folder,
		"file://" + folder:                             folder,
		"file://localhost" + folder + "/a%20b":         folder + "/a b",
		"s3://bucket?region=eu-west-1":                 "s3://bucket",
		"s3://bucket/a/b/?region=eu-west-1":            "s3://bucket/a/b",
		"s3://bucket/a?endpoint=http://127.0.0.1:9000": "s3://bucket/a at http://127.0.0.1:9000",
		"s3://bucket/a?endpoint=" + url.QueryEscape("https://store.lan"): "s3://bucket/a at https://store.lan",
		"minio://127.0.0.1:9000/bucket?tls=false":                        "minio://127.0.0.1:9000/bucket",
		"minio://store.lan/bucket/A/b":                                   "minio://store.lan/bucket/A/b",
	} {
		s, err := open.Open(t.Context(), location)
		if err != nil {
			t.Errorf("%s: %v", location, err)
		} else if got := fmt.Sprint(s); got != want {
			t.Errorf("%s: opened %s, want %s", location, got, want)
		}
	}
}

func TestWrongLocations(t *testing.T) {
	setEnv(t, "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret")
	noCert := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(noCert, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, location := range []string{
		"", "ftp://host/bucket", "gs://bucket", "://", "s3:bucket/prefix", "s3:/bucket", "minio:host/bucket", "file:/folder", "file:", "file://", "file:///",
		"file://host/folder", "file:///folder?tls=false", "a\x00b",
		"s3://", "s3:///prefix", "s3://?region=x", "s3://bucket", "s3://bucket:80?region=x", "s3://bucket?regoin=x", "s3://bucket?region=", "s3://bucket?region=a&region=b",
		"s3://bucket?tls=false&region=x", "s3://bucket?endpoint=127.0.0.1:9000", "s3://bucket?endpoint=ftp://host", "s3://bucket?endpoint=http://", "s3://bucket#a",
		"s3://bucket/a/../b?region=x", "s3://bucket/a//b?region=x", "s3://bucket/a%0Ab?region=x", "s3://bucket/%zz", "s3://bucket?region=%zz",
		"s3://bucket/" + strings.Repeat("a/", 300) + "?region=x",
		"s3://bucket?region=x&ca=" + noCert, "s3://bucket?region=x&ca=/does/not/exist.pem",
		"minio://", "minio://host", "minio://host/", "minio:///bucket", "minio://host:9000", "minio://host/bucket?tls=perhaps", "minio://host/bucket?tls=", "minio://host/BUCKET",
		"minio://host/b", "minio://host/bucket?endpoint=http://host", "minio://host/bucket/../other", "minio://host/bucket?tls=false&ca=" + noCert, "minio://host/bucket?ca=" + noCert,
		"minio://ho st/bucket",
	} {
		s, err := open.Open(t.Context(), location)
		if !errors.Is(err, storage.ErrLocation) {
			t.Errorf("%q: %v, %v, want ErrLocation", location, s, err)
			continue
		}
		if text := err.Error(); strings.ContainsAny(text, "\r\n") || !strings.HasPrefix(text, "open ") {
			t.Errorf("%q: %q", location, text)
		}
		if storage.Hint(err) == "" {
			t.Errorf("%q: no hint", location)
		}
	}
}

func TestCredentialsInALocationAreRefusedAndNotShown(t *testing.T) {
	setEnv(t, "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=env-hush")
	for _, location := range []string{
		"minio://user:hush@host:9000/bucket", "s3://user:hush@bucket/prefix?region=x", "file://user:hush@localhost/folder",
		"s3://bucket?endpoint=http://user:hush@host", "s3://bucket?secret=hush&region=x", "minio://host/bucket?secret_key=hush", "s3://user:hu%sh@bucket",
		"https://user:hush@host/bucket",
	} {
		_, err := open.Open(t.Context(), location)
		if !errors.Is(err, storage.ErrLocation) {
			t.Errorf("%s: %v", location, err)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the error shows the password: %v", location, err)
		}
	}
}

func TestWithoutCredentials(t *testing.T) {
	setEnv(t)
	for _, location := range []string{"s3://bucket?region=eu-west-1", "minio://host/bucket"} {
		_, err := open.Open(t.Context(), location)
		if !errors.Is(err, storage.ErrCredentials) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want ErrCredentials", location, err)
		}
		t.Log(err)
	}
}

// TestAgainstMinIO opens the same bucket in all ways that reach it and sees the
// same object.
func TestAgainstMinIO(t *testing.T) {
	server := miniotest.Start(t)
	server.CreateBucket("bucket")
	minioKeys := []string{"MINIO_ACCESS_KEY=" + server.AccessKey, "MINIO_SECRET_KEY=" + server.SecretKey}
	awsKeys := []string{"AWS_ACCESS_KEY_ID=" + server.AccessKey, "AWS_SECRET_ACCESS_KEY=" + server.SecretKey}
	for i, c := range []struct {
		location string
		env      []string
	}{
		{server.MinioLocation("bucket/prefix"), minioKeys},
		{server.MinioLocation("bucket/prefix"), awsKeys},
		{server.S3Location("bucket/prefix"), awsKeys},
		{"s3://bucket/prefix/", append(awsKeys, "AWS_ENDPOINT_URL="+server.Endpoint())},
		{"s3://bucket/prefix/", append(awsKeys, "AWS_ENDPOINT_URL_S3="+server.Endpoint(), "AWS_REGION=us-east-1")},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			setEnv(t, c.env...)
			s, err := open.Open(t.Context(), c.location)
			if err != nil {
				t.Fatal(err)
			}
			err = s.Put(t.Context(), "shared", strings.NewReader("content"), 7)
			if i == 0 && err != nil || i > 0 && !errors.Is(err, storage.ErrExist) {
				t.Errorf("put: %v", err)
			}
			b, err := storage.ReadAll(t.Context(), s, "shared", 100)
			if err != nil || string(b) != "content" {
				t.Errorf("get: %q, %v", b, err)
			}
		})
	}
}
