package synckey

import (
	"flag"
	"os"
	"testing"
)

// TestMain draws fewer histories than rapid would by default, since each starts
// two clusters; -rapid.checks asks for more.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
