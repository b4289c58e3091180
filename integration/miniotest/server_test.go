package miniotest

import (
	"context"
	"net/http"
	"testing"
)

func TestServerKeepsItsDataOverARestart(t *testing.T) {
	s := Start(t)
	s.CreateBucket("kept")
	s.Stop()
	if resp, err := http.Get(s.Endpoint()); err == nil {
		resp.Body.Close()
		t.Fatal("the stopped server answers")
	}
	s.Restart()
	ok, err := s.Client().BucketExists(context.Background(), "kept")
	if err != nil || !ok {
		t.Fatalf("bucket after the restart: %v, %v", ok, err)
	}
}

func TestTwoServersStandSideBySide(t *testing.T) {
	a, b := Start(t), Start(t)
	if a.Host() == b.Host() || a.SecretKey == b.SecretKey {
		t.Fatal("two servers share an address or a key")
	}
	a.CreateBucket("only-a")
	ok, err := b.Client().BucketExists(context.Background(), "only-a")
	if err != nil || ok {
		t.Fatalf("bucket of the other server: %v, %v", ok, err)
	}
}
