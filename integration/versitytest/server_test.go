package versitytest

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
