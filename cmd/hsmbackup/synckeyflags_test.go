package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/hsmbackup/hsmbackup/cluster/hsm"
)

// TestSideError: whose password was wrong, and where it came from, is in the
// error; the password is not.
func TestSideError(t *testing.T) {
	t.Setenv("HSMBACKUP_PIN", "alice:plain-one")
	t.Setenv("HSMBACKUP_DST_PIN", "alice:another-one")
	for s, want := range map[side]string{srcSide: "source, with the login of HSMBACKUP_PIN", dstSide: "destination, with the login of HSMBACKUP_DST_PIN"} {
		name := map[side]string{srcSide: "source", dstSide: "destination"}[s]
		err := sideError(name, s, hsm.ErrLogin)
		if !errors.Is(err, hsm.ErrLogin) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "-one") {
			t.Errorf("%v, want %s", err, want)
		}
		if err := sideError(name, s, hsm.ErrUnavailable); !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%v", err)
		}
	}
	if err := sideError("source", srcSide, nil); err != nil {
		t.Error(err)
	}
}

// TestSynckeyGuards: limits and times that mean nothing are refused as usage.
func TestSynckeyGuards(t *testing.T) {
	for _, args := range []string{"--max-changes many", "--max-destroyed 101%", "--max-destroyed -1", "--created-since yesterday"} {
		words := append([]string{"synckey", "--src", "a", "--dst", "b"}, strings.Fields(args)...)
		if code, _, errs := invoke(t, words...); code != exitUsage {
			t.Errorf("%s: exit %d, %s", args, code, errs)
		}
	}
}
