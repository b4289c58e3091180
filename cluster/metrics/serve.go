package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Bounds of what callers may take up.
const (
	maxConnections = 32
	maxScrapes     = 4
	maxHeader      = 8 << 10
	headerTimeout  = 5 * time.Second
	answerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute // longer than the usual interval of scrapes
	stopGrace      = 2 * time.Second
)

// ErrAddress: the address cannot be listened on.
var ErrAddress = errors.New("metrics address")

// Server answers /metrics, /healthz and /readyz.
type Server struct {
	lis  net.Listener
	http *http.Server
}

// Serve listens on address and answers until ctx ends, and then returns nil.
// Callers that print their address use Listen, and then Server.Serve.
func Serve(ctx context.Context, address string, r *Registry, checks ...Check) error {
	s, err := Listen(address, r, checks...)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// Listen listens on address, which is HOST:PORT. Without a host it is
// 127.0.0.1, with port 0 a free port. ErrAddress.
func Listen(address string, r *Registry, checks ...Check) (*Server, error) {
	if err := CheckAddress(address); err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(address) // checked
	if host == "" {
		host = "127.0.0.1"
	}
	lis, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w; stop what listens there, or name another", ErrAddress, address, err)
	}
	s := &Server{lis: lis}
	s.http = &http.Server{
		Handler:           guard(s.Local(), handler(r, checks)),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: answerTimeout + headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0), // what strangers send is not worth a line each
	}
	return s, nil
}

// CheckAddress tells whether Listen can make sense of an address. ErrAddress.
func CheckAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%w %q: want HOST:PORT, or :PORT for this machine only", ErrAddress, address)
	}
	return nil
}

// Address returns where the server is reached.
func (s *Server) Address() string { return s.lis.Addr().String() }

// Local tells whether only this machine reaches the server.
func (s *Server) Local() bool {
	a, ok := s.lis.Addr().(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

// Serve answers until ctx ends, and then returns nil. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(netutil.LimitListener(s.lis, maxConnections)) }()
	select {
	case err := <-served:
		return fmt.Errorf("%w %s: %w", ErrAddress, s.Address(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if s.http.Shutdown(grace) != nil {
		_ = s.http.Close() // those that are left had their time
	}
	<-served
	return nil
}

// Close stops listening; for a server on which Serve is not called.
func (s *Server) Close() error { return s.lis.Close() }

func handler(r *Registry, checks []Check) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(r.prometheus, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: answerTimeout, ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("/healthz", alive)
	mux.HandleFunc("/readyz", (&health{checks: checks}).ready)
	return mux
}

// guard lets only reads through. On a local address it also turns away a Host
// that is a name other than localhost: a web page can give its own name the
// address 127.0.0.1 and have its reader's browser read what is here.
func guard(local bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "this can only be read", http.StatusMethodNotAllowed)
		case local && !addressed(r.Host):
			http.Error(w, "ask for it by address, or as localhost", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func addressed(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	return name == "localhost" || net.ParseIP(name) != nil
}
