package soft

import (
	"flag"
	"os"
	"testing"
)

// TestMain asks rapid for fewer checks than its 100, which take half a minute
// under the race detector, unless the command line says otherwise.
func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked {
		if err := flag.Set("rapid.checks", "30"); err != nil {
			panic(err) // rapid has renamed its flag
		}
	}
	os.Exit(m.Run())
}
