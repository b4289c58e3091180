// Package minio keeps write-once objects in a bucket of an S3 server through
// minio-go, MinIO's own client. Its behaviour is that of package s3; which of the
// two to use is a matter of where credentials come from and of taste.
package minio

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"os"
	"strconv"
	"strings"

	client "github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

// Config names a place on an S3 server.
type Config struct {
	Host   string // HOST or HOST:PORT
	Bucket string
	Prefix string // of all names; may be empty
	Region string // us-east-1 if empty, as MinIO has it
	NoTLS  bool
	CA     string // PEM file with the only authorities to trust; empty: the system's
	Keys   storage.Keys
}

// Open returns the store. It sends nothing: what is wrong with server, bucket or
// keys shows at the first call. Without Keys the variables MINIO_ACCESS_KEY and
// MINIO_SECRET_KEY are used, else AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
// AWS_SESSION_TOKEN; without these Open fails with ErrCredentials.
func Open(config Config) (storage.Store, error) { return open(config, remote.DefaultOptions) }

func open(config Config, options remote.Options) (*remote.Store, error) {
	location := "minio://" + strings.TrimSuffix(config.Host+"/"+config.Bucket+"/"+strings.Trim(config.Prefix, "/"), "/")
	fail := func(kind, err error) (*remote.Store, error) {
		return nil, &storage.Error{Op: "open", Location: location, Kind: kind, Err: err}
	}
	if err := s3utils.CheckValidBucketNameStrict(config.Bucket); err != nil {
		return fail(storage.ErrLocation, err)
	}
	if err := remote.CheckPrefix(config.Prefix); err != nil {
		return fail(nil, err)
	}
	keys, err := chooseKeys(config.Keys)
	if err != nil {
		return fail(nil, err)
	}
	transport, err := remote.Transport(config.CA)
	if err != nil {
		return fail(nil, err)
	}
	region := config.Region
	if region == "" {
		region = "us-east-1"
	}
	core, err := client.NewCore(config.Host, &client.Options{
		Creds:      keys,
		Secure:     !config.NoTLS,
		Transport:  remote.Guard(transport),
		Region:     region,
		MaxRetries: 1, // package remote repeats
	})
	if err != nil {
		return fail(storage.ErrLocation, err)
	}
	return remote.New(&bucket{core, config.Bucket}, config.Prefix, location, options), nil
}

func chooseKeys(keys storage.Keys) (*credentials.Credentials, error) {
	if !keys.IsZero() {
		access, secret, session := keys.Reveal()
		return credentials.NewStaticV4(access, secret, session), nil
	}
	for _, names := range [][3]string{
		{"MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", ""},
		{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
	} {
		access, secret := os.Getenv(names[0]), os.Getenv(names[1])
		if access != "" && secret != "" {
			return credentials.NewStaticV4(access, secret, os.Getenv(names[2])), nil
		}
	}
	return nil, fmt.Errorf("%w: none are given", storage.ErrCredentials)
}

// bucket implements remote.Bucket.
type bucket struct {
	core *client.Core
	name string
}

func (b *bucket) Create(ctx context.Context, key string, body io.ReadSeeker, content remote.Content) error {
	options := client.PutObjectOptions{
		UserMetadata: map[string]string{
			remote.PutHeader:        content.PutID,
			"x-amz-checksum-sha256": base64.StdEncoding.EncodeToString(content.SHA256[:]),
		},
		// The hash of the whole body is signed and stored. The library's signed
		// chunks would add nothing, and its trailing checksums fail on some servers
		// without TLS.
		DisableContentSha256: true,
	}
	options.SetMatchETagExcept("*")
	_, err := b.core.PutObject(ctx, b.name, key, body, content.Size, "", hex.EncodeToString(content.SHA256[:]), options)
	return err
}

func (b *bucket) StartUpload(ctx context.Context, key string, content remote.Content) (string, error) {
	return b.core.NewMultipartUpload(ctx, b.name, key, client.PutObjectOptions{UserMetadata: map[string]string{
		remote.PutHeader:           content.PutID,
		"x-amz-checksum-algorithm": "SHA256", // named: servers differ in what they suppose
	}})
}

func (b *bucket) SendPart(ctx context.Context, key, id string, body io.ReadSeeker, part remote.Part, size int64) (string, error) {
	p, err := b.core.PutObjectPart(ctx, b.name, key, id, part.Number, body, size, client.PutObjectPartOptions{
		Sha256Hex:            hex.EncodeToString(part.SHA256[:]),
		CustomHeader:         http.Header{"X-Amz-Checksum-Sha256": {base64.StdEncoding.EncodeToString(part.SHA256[:])}},
		DisableContentSha256: true, // as in Create
	})
	return p.ETag, err
}

func (b *bucket) CompleteUpload(ctx context.Context, key, id string, parts []remote.Part) error {
	var done []client.CompletePart
	for _, p := range parts {
		done = append(done, client.CompletePart{PartNumber: p.Number, ETag: p.ETag, ChecksumSHA256: base64.StdEncoding.EncodeToString(p.SHA256[:])})
	}
	var options client.PutObjectOptions
	options.SetMatchETagExcept("*")
	_, err := b.core.CompleteMultipartUpload(ctx, b.name, key, id, done, options)
	return err
}

func (b *bucket) AbortUpload(ctx context.Context, key, id string) error {
	return b.core.AbortMultipartUpload(ctx, b.name, key, id)
}

func (b *bucket) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.Upload, error] {
	return func(yield func(remote.Upload, error) bool) {
		for key, id, more := "", "", true; more; {
			page, err := b.core.ListMultipartUploads(ctx, b.name, prefix, key, id, "", 1000)
			if err != nil {
				yield(remote.Upload{}, err)
				return
			}
			for _, u := range page.Uploads {
				if !yield(remote.Upload{Key: u.Key, ID: u.UploadID, Started: u.Initiated}, nil) {
					return
				}
			}
			more = page.IsTruncated && (page.NextKeyMarker != key || page.NextUploadIDMarker != id)
			key, id = page.NextKeyMarker, page.NextUploadIDMarker
		}
	}
}

func (b *bucket) Open(ctx context.Context, key string, offset, last int64) (io.ReadCloser, error) {
	var options client.GetObjectOptions
	if r := remote.Range(offset, last); r != "" {
		options.Set("Range", r)
	}
	body, _, _, err := b.core.GetObject(ctx, b.name, key, options)
	return body, err
}

func (b *bucket) Head(ctx context.Context, key string) (remote.Head, error) {
	info, err := b.core.StatObject(ctx, b.name, key, client.StatObjectOptions{})
	if err != nil {
		return remote.Head{}, err
	}
	return remote.Head{Version: info.VersionID, PutID: info.Metadata.Get("X-Amz-Meta-" + remote.PutHeader)}, nil
}

func (b *bucket) Remove(ctx context.Context, key, version string) error {
	return b.core.RemoveObject(ctx, b.name, key, client.RemoveObjectOptions{VersionID: version})
}

func (b *bucket) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	options := client.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, FetchOwner: new(bool)}
	return func(yield func(storage.Info, error) bool) {
		for o := range b.core.ListObjectsIter(ctx, b.name, options) {
			if !yield(storage.Info{Name: o.Key, Size: o.Size, Modified: o.LastModified}, o.Err) || o.Err != nil {
				return
			}
		}
	}
}

func (b *bucket) Explain(err error) (remote.Answer, bool) {
	var r client.ErrorResponse
	if !errors.As(err, &r) || r.StatusCode == 0 {
		return remote.Answer{}, false
	}
	if strings.HasPrefix(r.Code, strconv.Itoa(r.StatusCode)) { // made up from the status
		r.Code, r.Message = "", "" // which may be a page of HTML
	}
	return remote.Answer{Status: r.StatusCode, Code: r.Code, Message: r.Message, Region: r.Region}, true
}
