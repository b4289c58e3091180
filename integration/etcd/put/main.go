// Command put puts keys into an etcd cluster, one client after the other or many
// at a time, and prints one line of JSON: how many, and how long it took.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func main() {
	endpoints := flag.String("endpoints", "", "addresses of the members, with commas between")
	clients := flag.Int("clients", 1, "puts at a time")
	n := flag.Int64("n", 1000, "puts")
	size := flag.Int("size", 512, "bytes of a value")
	prefix := flag.String("prefix", "key", "of the names")
	var files transport.TLSInfo
	flag.StringVar(&files.TrustedCAFile, "ca", "", "PEM file of the authority")
	flag.StringVar(&files.CertFile, "cert", "", "PEM file of the certificate")
	flag.StringVar(&files.KeyFile, "key", "", "PEM file of its key")
	flag.Parse()
	took, err := put(clientv3.Config{Endpoints: strings.Split(*endpoints, ",")}, files, *clients, *n, *size, *prefix)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"puts": *n, "seconds": took.Seconds()})
}

// put makes n puts, so many at a time, over one connection per caller up to the
// number of members, as the client of hsmbackup has one to each.
func put(config clientv3.Config, files transport.TLSInfo, callers int, n int64, size int, prefix string) (time.Duration, error) {
	var err error
	if config.TLS, err = files.ClientConfig(); err != nil {
		return 0, err
	}
	config.DialTimeout, config.Logger = 10*time.Second, zap.NewNop()
	var pool []*clientv3.Client
	for range min(callers, len(config.Endpoints)) {
		c, err := clientv3.New(config)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		if _, err := c.Get(context.Background(), "warm"); err != nil {
			return 0, err
		}
		pool = append(pool, c)
	}
	value := strings.Repeat("v", size)
	var left atomic.Int64
	left.Store(n)
	errs := make(chan error, callers)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range callers {
		wg.Go(func() {
			for {
				k := left.Add(-1)
				if k < 0 {
					return
				}
				if _, err := pool[i%len(pool)].Put(context.Background(), fmt.Sprintf("%s/%016x", prefix, k), value); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return 0, err
	default:
		return took, nil
	}
}
