package hsm

import (
	"context"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxProgram bounds the name of a program, in bytes.
const MaxProgram = 64

// Application is the process for which a client makes a call, as the client
// says. Nothing proves it and no right comes from it: it is for the audit log,
// and for whoever then looks for the process on the client's host.
type Application struct {
	PID, UID int64
	Program  string
}

// Claimed returns what may be recorded of an application that somebody else
// named: numbers that the kernel hands out, a short printable name, and "?" in
// place of what is neither.
func (a Application) Claimed() Application {
	name := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, a.Program[:min(len(a.Program), MaxProgram)])
	for len(name) > MaxProgram { // no mark is longer than what it replaces; be sure
		_, n := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-n]
	}
	if name == "" {
		name = "?"
	}
	return Application{PID: max(a.PID, 0), UID: max(a.UID, 0), Program: name}
}

// String is "pid 12 uid 3 program nginx".
func (a Application) String() string {
	return "pid " + strconv.FormatInt(a.PID, 10) + " uid " + strconv.FormatInt(a.UID, 10) + " program " + a.Program
}

type applicationKey struct{}

// WithApplication says for which application the calls with this context are
// made. What it says is made fit to record (Claimed).
func WithApplication(ctx context.Context, a Application) context.Context {
	return context.WithValue(ctx, applicationKey{}, a.Claimed())
}

// SameApplication is ctx for the application of another context, or for none if
// that names none: work goes on under a context of its own, and belongs to
// whoever it was begun for.
func SameApplication(ctx, as context.Context) context.Context {
	return context.WithValue(ctx, applicationKey{}, as.Value(applicationKey{}))
}

// ApplicationOf returns the application of a call, if the client named one.
func ApplicationOf(ctx context.Context) (Application, bool) {
	a, ok := ctx.Value(applicationKey{}).(Application)
	return a, ok
}
