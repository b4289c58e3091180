package sim

import (
	"flag"
	"fmt"
	"log/slog"
	"strings"
)

var flagLogs = flag.Bool("sim.logs", false, "TestSeed: put what HSMs log into the trace")

// log is where an HSM logs.
func (b *box) log() *slog.Logger {
	if !*flagLogs {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(logged{b}, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// logged puts lines into the trace.
type logged struct{ b *box }

func (l logged) Write(line []byte) (int, error) {
	l.b.w.trace.add("%s", fmt.Sprintf("%s logs %s", l.b.name, strings.ReplaceAll(strings.TrimSpace(string(line)), l.b.w.dir, "")))
	return len(line), nil
}
