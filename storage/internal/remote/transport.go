package remote

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hsmbackup/hsmbackup/storage"
)

// Transport returns the HTTP transport of both drivers. With a file name in ca
// it trusts the authorities in that PEM file and no others.
//
// The time limits end waiting for a server that is silent; they do not limit how
// long a body takes. After the body of a Put is sent, a server may need a while
// to make it durable, hence the minute.
func Transport(ca string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		ExpectContinueTimeout: 10 * time.Second,
		IdleConnTimeout:       time.Minute,
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   64, // packs go in parallel
		DisableCompression:    true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if ca == "" {
		return t, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("%w: read the file of ca=: %w", storage.ErrLocation, err)
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s of ca= holds no PEM certificate", storage.ErrLocation, ca)
	}
	return t, nil
}
