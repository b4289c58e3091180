// Package s3 keeps write-once objects in a bucket of Amazon S3, or of a server
// that speaks S3, through the AWS SDK and its usual chain of credentials
// (environment, shared configuration and profiles, web identity, container,
// instance).
//
// Needed rights: s3:PutObject to write; s3:GetObject and s3:ListBucket to read;
// s3:DeleteObject, and s3:DeleteObjectVersion where the bucket keeps versions, to
// delete.
package s3

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/internal/remote"
)

// Config names a place in S3.
type Config struct {
	Bucket   string
	Prefix   string // of all names; may be empty
	Region   string // empty: from the environment, us-east-1 where an endpoint is given
	Endpoint string // http://… or https://… of another server than Amazon's; empty: from the environment
	CA       string // PEM file with the only authorities to trust; empty: the environment's, the system's
	Keys     storage.Keys
}

// Open returns the store. It resolves credentials, unless Keys are given, and
// fails with ErrCredentials if there are none; it does not touch the bucket:
// what is wrong with it shows at the first call.
func Open(ctx context.Context, config Config) (storage.Store, error) {
	return open(ctx, config, remote.DefaultOptions)
}

func open(ctx context.Context, config Config, options remote.Options) (*remote.Store, error) {
	location := "s3://" + strings.TrimSuffix(config.Bucket+"/"+strings.Trim(config.Prefix, "/"), "/")
	fail := func(kind, err error) (*remote.Store, error) {
		return nil, &storage.Error{Op: "open", Location: location, Kind: kind, Err: err}
	}
	if err := check(config); err != nil {
		return fail(nil, err)
	}
	if config.Endpoint != "" { // which holds no credentials, check says
		location += " at " + config.Endpoint
	}
	cfg, err := load(ctx, config)
	if err != nil {
		return fail(nil, err)
	}
	if cfg.Credentials == nil {
		return fail(storage.ErrCredentials, errors.New("none are given"))
	}
	if _, err := cfg.Credentials.Retrieve(ctx); err != nil {
		return fail(storage.ErrCredentials, fmt.Errorf("none are given: %w", err))
	}
	api, err := newClient(cfg, config)
	if err != nil {
		return fail(nil, err)
	}
	return remote.New(&bucket{api, config.Bucket}, config.Prefix, location, options), nil
}

func check(config Config) error {
	if config.Bucket == "" || strings.ContainsAny(config.Bucket, "/?#@: ") {
		return fmt.Errorf("%w: the bucket name is %q", storage.ErrLocation, config.Bucket)
	}
	if err := remote.CheckPrefix(config.Prefix); err != nil {
		return err
	}
	if config.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(config.Endpoint)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return fmt.Errorf("%w: the endpoint must be http://HOST:PORT or https://HOST:PORT", storage.ErrLocation)
	case u.User != nil:
		return fmt.Errorf("%w: credentials do not belong in the endpoint", storage.ErrLocation)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%w: the endpoint has a query or a fragment", storage.ErrLocation)
	}
	return nil
}

// load reads the SDK's configuration. The SDK makes its own HTTP client here
// (for STS, SSO and the instance's metadata): given one, it refuses to start when
// AWS_CA_BUNDLE is set.
func load(ctx context.Context, c Config) (aws.Config, error) {
	options := []func(*awsconfig.LoadOptions) error{awsconfig.WithRegion(c.Region)}
	if !c.Keys.IsZero() {
		options = append(options, awsconfig.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(c.Keys.Reveal())))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		if _, bundle := remote.Transport(""); bundle != nil { // its words are clearer
			return cfg, bundle
		}
		return cfg, fmt.Errorf("%w: read the AWS configuration: %w", storage.ErrCredentials, err)
	}
	if c.Endpoint != "" {
		cfg.BaseEndpoint = &c.Endpoint
	}
	if cfg.Region == "" && cfg.BaseEndpoint != nil {
		cfg.Region = "us-east-1"
	}
	if cfg.Region == "" {
		return cfg, fmt.Errorf("%w: no region is given, neither by ?region= nor by AWS_REGION or the profile", storage.ErrLocation)
	}
	return cfg, nil
}

func newClient(cfg aws.Config, c Config) (*s3.Client, error) {
	transport, err := remote.Transport(c.CA)
	if err != nil {
		return nil, err
	}
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok && c.CA == "" {
		if theirs := b.GetTransport().TLSClientConfig; theirs != nil && theirs.RootCAs != nil { // ca_bundle of the profile, too
			transport.TLSClientConfig.RootCAs = theirs.RootCAs
		}
	}
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: remote.Guard(transport), CheckRedirect: noRedirect}
		o.Retryer = aws.NopRetryer{}                                              // package remote repeats
		o.UsePathStyle = o.BaseEndpoint != nil                                    // also when the environment names it
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired // Create brings its own
		o.Logger = logging.Nop{}                                                  // what matters is in the errors
	}), nil
}

// noRedirect hands a redirect to us as the answer: following it to another
// region would break the signature and hide the cause.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// bucket implements remote.Bucket.
type bucket struct {
	api  *s3.Client
	name string
}

func (b *bucket) Create(ctx context.Context, key string, body io.ReadSeeker, content remote.Content) error {
	_, err := b.api.PutObject(ctx, &s3.PutObjectInput{
		Bucket:         &b.name,
		Key:            &key,
		Body:           body,
		ContentLength:  &content.Size,
		IfNoneMatch:    aws.String("*"),
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(content.SHA256[:])),
		Metadata:       map[string]string{remote.PutHeader: content.PutID},
	}, s3.WithAPIOptions(signHash(hex.EncodeToString(content.SHA256[:]))))
	return err
}

// signHash signs the hash we know, with and without TLS, in place of the SDK's
// reading the body once more.
func signHash(sha256 string) func(*middleware.Stack) error {
	set := middleware.InitializeMiddlewareFunc("SignKnownHash", func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		return next.HandleInitialize(v4.SetPayloadHash(ctx, sha256), in)
	})
	return func(stack *middleware.Stack) error { return stack.Initialize.Add(set, middleware.Before) }
}

func (b *bucket) StartUpload(ctx context.Context, key string, content remote.Content) (string, error) {
	out, err := b.api.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket:            &b.name,
		Key:               &key,
		ChecksumAlgorithm: types.ChecksumAlgorithmSha256, // named: servers differ in what they suppose
		Metadata:          map[string]string{remote.PutHeader: content.PutID},
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.UploadId), nil
}

func (b *bucket) SendPart(ctx context.Context, key, id string, body io.ReadSeeker, part remote.Part, size int64) (string, error) {
	out, err := b.api.UploadPart(ctx, &s3.UploadPartInput{
		Bucket:         &b.name,
		Key:            &key,
		UploadId:       &id,
		PartNumber:     aws.Int32(int32(part.Number)),
		Body:           body,
		ContentLength:  &size,
		ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(part.SHA256[:])),
	}, s3.WithAPIOptions(signHash(hex.EncodeToString(part.SHA256[:]))))
	if err != nil {
		return "", err
	}
	return aws.ToString(out.ETag), nil
}

func (b *bucket) CompleteUpload(ctx context.Context, key, id string, parts []remote.Part) error {
	done := &types.CompletedMultipartUpload{}
	for _, p := range parts {
		done.Parts = append(done.Parts, types.CompletedPart{
			PartNumber: aws.Int32(int32(p.Number)), ETag: aws.String(p.ETag),
			ChecksumSHA256: aws.String(base64.StdEncoding.EncodeToString(p.SHA256[:])),
		})
	}
	_, err := b.api.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &b.name, Key: &key, UploadId: &id, MultipartUpload: done, IfNoneMatch: aws.String("*"),
	})
	return err
}

func (b *bucket) AbortUpload(ctx context.Context, key, id string) error {
	_, err := b.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: &id})
	return err
}

func (b *bucket) Uploads(ctx context.Context, prefix string) iter.Seq2[remote.Upload, error] {
	return func(yield func(remote.Upload, error) bool) {
		in := &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &prefix}
		for pages := s3.NewListMultipartUploadsPaginator(b.api, in); pages.HasMorePages(); {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(remote.Upload{}, err)
				return
			}
			for _, u := range page.Uploads {
				if !yield(remote.Upload{Key: aws.ToString(u.Key), ID: aws.ToString(u.UploadId), Started: aws.ToTime(u.Initiated)}, nil) {
					return
				}
			}
		}
	}
}

func (b *bucket) Open(ctx context.Context, key string, offset, last int64) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &key}
	if r := remote.Range(offset, last); r != "" {
		in.Range = &r
	}
	out, err := b.api.GetObject(ctx, in)
	if err != nil {
		return nil, err
	}
	return out.Body, nil
}

func (b *bucket) Head(ctx context.Context, key string) (remote.Head, error) {
	out, err := b.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return remote.Head{}, err
	}
	return remote.Head{Version: aws.ToString(out.VersionId), PutID: out.Metadata[remote.PutHeader]}, nil
}

func (b *bucket) Remove(ctx context.Context, key, version string) error {
	in := &s3.DeleteObjectInput{Bucket: &b.name, Key: &key}
	if version != "" {
		in.VersionId = &version
	}
	_, err := b.api.DeleteObject(ctx, in)
	return err
}

func (b *bucket) List(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix}
	if after != "" {
		in.StartAfter = &after
	}
	return func(yield func(storage.Info, error) bool) {
		for pages := s3.NewListObjectsV2Paginator(b.api, in); pages.HasMorePages(); {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			for _, o := range page.Contents {
				if !yield(storage.Info{Name: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified)}, nil) {
					return
				}
			}
		}
	}
}

func (b *bucket) Explain(err error) (remote.Answer, bool) {
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) || response.HTTPStatusCode() < 300 { // below: a body that broke off
		return remote.Answer{}, false
	}
	answer := remote.Answer{Status: response.HTTPStatusCode(), Region: response.Response.Header.Get("X-Amz-Bucket-Region")}
	var api smithy.APIError
	madeUp := http.StatusText(answer.Status) // what the SDK makes of an answer without words
	if errors.As(err, &api) && api.ErrorCode() != "UnknownError" && api.ErrorMessage() != madeUp {
		answer.Code, answer.Message = api.ErrorCode(), api.ErrorMessage()
	}
	return answer, true
}
