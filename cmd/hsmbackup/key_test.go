package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// A key of a type alone gets the usual size or curve; what was asked for stands.
func TestFillSize(t *testing.T) {
	for _, c := range []struct {
		give, want hsm.CreateRequest
	}{
		{hsm.CreateRequest{Type: "aes"}, hsm.CreateRequest{Type: "aes", Size: 32}},
		{hsm.CreateRequest{Type: "aes", Size: 16}, hsm.CreateRequest{Type: "aes", Size: 16}},
		{hsm.CreateRequest{Type: "generic-secret"}, hsm.CreateRequest{Type: "generic-secret", Size: 32}},
		{hsm.CreateRequest{Type: "rsa"}, hsm.CreateRequest{Type: "rsa", Size: 3072}},
		{hsm.CreateRequest{Type: "ml-dsa"}, hsm.CreateRequest{Type: "ml-dsa", Size: 65}},
		{hsm.CreateRequest{Type: "ml-kem"}, hsm.CreateRequest{Type: "ml-kem", Size: 768}},
		{hsm.CreateRequest{Type: "ec"}, hsm.CreateRequest{Type: "ec", Curve: "secp256r1"}},
		{hsm.CreateRequest{Type: "ec", Curve: "secp384r1"}, hsm.CreateRequest{Type: "ec", Curve: "secp384r1"}},
		{hsm.CreateRequest{Type: "ed25519"}, hsm.CreateRequest{Type: "ed25519"}},
		{hsm.CreateRequest{Type: "unknown"}, hsm.CreateRequest{Type: "unknown"}},
	} {
		got := c.give
		fillSize(&got)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("a new key of type %s %d %s (-want +got):\n%s", c.give.Type, c.give.Size, c.give.Curve, diff)
		}
	}
}
