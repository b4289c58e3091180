// Package open turns a LOCATION of the command line into a storage.Store.
package open

import (
	"context"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/hsmbackup/hsmbackup/storage"
	"github.com/hsmbackup/hsmbackup/storage/file"
	"github.com/hsmbackup/hsmbackup/storage/minio"
	"github.com/hsmbackup/hsmbackup/storage/s3"
)

// Open returns the store at a location:
//
//	FOLDER
//	file:///FOLDER
//	s3://BUCKET/PREFIX?region=REGION&endpoint=URL&ca=FILE
//	minio://HOST:PORT/BUCKET/PREFIX?tls=false&region=REGION&ca=FILE
//
// Prefix and parameters may be left out. An endpoint is a server other than
// Amazon's, addressed with the bucket in the path. ca names a PEM file with the
// only authorities to trust. Credentials come from the environment (see packages
// s3 and minio); a location that holds any is refused, since locations end up in
// messages, histories and process lists.
//
// What is wrong with the location itself is ErrLocation; what is wrong with the
// place shows at the first call of the store. The error never repeats a password.
func Open(ctx context.Context, location string) (storage.Store, error) {
	return OpenWith(ctx, location, storage.Keys{})
}

// OpenWith is Open with these keys instead of those of the environment, unless
// they are zero. A folder needs none.
func OpenWith(ctx context.Context, location string, keys storage.Keys) (storage.Store, error) {
	scheme, _, found := strings.Cut(location, "://")
	if !found {
		return openFolder(location)
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, wrong(scheme+"://…", "it is not a well-formed URL")
	}
	if u.User != nil {
		return nil, wrong(u.Scheme+"://…@"+u.Host+u.Path, "credentials do not belong in a location; set them in the environment")
	}
	if u.Fragment != "" {
		return nil, wrong(withoutQuery(u), "'#' has no meaning in a location; write %%23 if the name holds it")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, wrong(withoutQuery(u), "its parameters are not well-formed")
	}
	switch u.Scheme {
	case "file":
		return openFile(u, query)
	case "s3":
		return openS3(ctx, u, query, keys)
	case "minio":
		return openMinio(u, query, keys)
	}
	return nil, wrong(withoutQuery(u), "%q is none of file, s3, minio", u.Scheme)
}

// openFolder also catches the slip of one slash or colon, s3:bucket, which
// would otherwise quietly make a folder of that name.
func openFolder(location string) (storage.Store, error) {
	for _, scheme := range []string{"s3:", "minio:", "file:"} {
		if strings.HasPrefix(location, scheme) {
			return nil, wrong(location, "it begins with %s but not with %s//; write ./%s… for a folder of that name", scheme, scheme, scheme)
		}
	}
	if location == "" {
		return nil, wrong(`""`, "it is empty")
	}
	return file.Open(location)
}

func openFile(u *url.URL, query url.Values) (storage.Store, error) {
	if err := only(u, query); err != nil {
		return nil, err
	}
	if u.Host != "" && u.Host != "localhost" {
		return nil, wrong(withoutQuery(u), "it names the host %q; a folder of this machine is file:///FOLDER with three slashes", u.Host)
	}
	if u.Path == "" || u.Path == "/" {
		return nil, wrong(withoutQuery(u), "it names no folder")
	}
	return file.Open(folderOf(u.Path, runtime.GOOS))
}

// folderOf is the folder that the path of a URL names: of file:///C:/snapshots on Windows
// that is C:/snapshots, and not a folder C: of the current drive.
func folderOf(path, goos string) string {
	if goos == "windows" && len(path) > 2 && path[0] == '/' && path[2] == ':' {
		return path[1:]
	}
	return path
}

func openS3(ctx context.Context, u *url.URL, query url.Values, keys storage.Keys) (storage.Store, error) {
	if err := only(u, query, "region", "endpoint", "ca"); err != nil {
		return nil, err
	}
	if u.Host == "" {
		return nil, wrong(withoutQuery(u), "it names no bucket; write s3://BUCKET/PREFIX")
	}
	return s3.Open(ctx, s3.Config{
		Bucket:   u.Host,
		Prefix:   u.Path,
		Region:   query.Get("region"),
		Endpoint: query.Get("endpoint"),
		CA:       query.Get("ca"),
		Keys:     keys,
	})
}

func openMinio(u *url.URL, query url.Values, keys storage.Keys) (storage.Store, error) {
	if err := only(u, query, "tls", "region", "ca"); err != nil {
		return nil, err
	}
	tls := true
	if query.Has("tls") {
		var err error
		if tls, err = strconv.ParseBool(query.Get("tls")); err != nil {
			return nil, wrong(withoutQuery(u), "tls is %q, neither true nor false", query.Get("tls"))
		}
	}
	if query.Has("ca") && !tls {
		return nil, wrong(withoutQuery(u), "ca has no meaning with tls=false")
	}
	bucket, prefix, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Hostname() == "" || bucket == "" {
		return nil, wrong(withoutQuery(u), "it names no host or no bucket; write minio://HOST:PORT/BUCKET/PREFIX")
	}
	return minio.Open(minio.Config{
		Host:   u.Host,
		Bucket: bucket,
		Prefix: prefix,
		Region: query.Get("region"),
		CA:     query.Get("ca"),
		NoTLS:  !tls,
		Keys:   keys,
	})
}

// only refuses parameters that are unknown, repeated or empty.
func only(u *url.URL, query url.Values, known ...string) error {
	for name, values := range query {
		if !slices.Contains(known, name) {
			if len(known) == 0 {
				return wrong(withoutQuery(u), "it takes no parameters, but has %q", name)
			}
			return wrong(withoutQuery(u), "parameter %q is none of %s", name, strings.Join(known, ", "))
		}
		if len(values) != 1 || values[0] == "" {
			return wrong(withoutQuery(u), "parameter %q is empty or stands there twice", name)
		}
	}
	return nil
}

func withoutQuery(u *url.URL) string { return u.Scheme + "://" + u.Host + u.Path }

func wrong(location, format string, args ...any) error {
	return &storage.Error{Op: "open", Location: location, Kind: storage.ErrLocation, Err: fmt.Errorf(format, args...)}
}
