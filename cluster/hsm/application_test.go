package hsm

import (
	"context"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestAnApplicationIsMadeFitToRecord(t *testing.T) {
	for _, c := range []struct {
		in   Application
		want string
	}{
		{Application{PID: 12, UID: 3, Program: "nginx"}, "pid 12 uid 3 program nginx"},
		{Application{PID: -1, UID: -1}, "pid 0 uid 0 program ?"},
		{Application{PID: 1, Program: "a\nb\x1b[2J\u202e\xff"}, "pid 1 uid 0 program a?b?[2J??"},
		{Application{Program: strings.Repeat("é", 40)}, "pid 0 uid 0 program " + strings.Repeat("é", 32)},
		{Application{Program: "x" + strings.Repeat("é", 40)}, "pid 0 uid 0 program x" + strings.Repeat("é", 31) + "?"},
	} {
		got, ok := ApplicationOf(WithApplication(context.Background(), c.in))
		if !ok || got.String() != c.want {
			t.Errorf("%+v: %q %t, want %q", c.in, got, ok, c.want)
		}
	}
	if a, ok := ApplicationOf(context.Background()); ok {
		t.Errorf("%v, of a call that names none", a)
	}
}

func FuzzApplicationClaimed(f *testing.F) {
	f.Add(int64(1), int64(2), "nginx\x00\xff")
	f.Fuzz(func(t *testing.T, pid, uid int64, program string) {
		a := Application{pid, uid, program}.Claimed()
		if a.PID < 0 || a.UID < 0 || a.Program == "" || len(a.Program) > MaxProgram || !utf8.ValidString(a.Program) {
			t.Fatalf("%+v", a)
		}
		if i := strings.IndexFunc(a.Program, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Fatalf("%q", a.Program)
		}
	})
}
