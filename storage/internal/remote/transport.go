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
// it trusts the authorities in that PEM file and no others; else those of
// AWS_CA_BUNDLE and no others; else the system's (or SSL_CERT_FILE's).
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
	var err error
	switch bundle := os.Getenv("AWS_CA_BUNDLE"); {
	case ca != "":
		if t.TLSClientConfig.RootCAs, err = authorities(ca); err != nil {
			err = fmt.Errorf("%w: the authorities of ca=: %w", storage.ErrLocation, err)
		}
	case bundle != "":
		if t.TLSClientConfig.RootCAs, err = authorities(bundle); err != nil {
			err = fmt.Errorf("%w: the authorities of AWS_CA_BUNDLE: %w", storage.ErrTLS, err)
		}
	}
	return t, err
}

func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}
