package metrics

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
)

// Check is one condition for a process to do its work: nil, or what is missing.
// The text of the error is shown to whoever asks.
type Check struct {
	Name string // in lower_snake_case
	Run  func(ctx context.Context) error
}

// checkTimeout bounds one look at all checks. A check that does not end is
// waited for no longer.
const checkTimeout = 2 * time.Second

// maxReason bounds the text of what is missing.
const maxReason = 512

// readiness is the body of /readyz.
type readiness struct {
	Ready  bool              `json:"ready"`
	Checks map[string]string `json:"checks"` // "ok", or what is missing
}

// health runs checks. Each runs once at a time, however many ask: one that hangs
// costs one goroutine.
type health struct {
	checks  []Check
	running singleflight.Group
}

// look runs the checks, all at once.
func (h *health) look(ctx context.Context) readiness {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	answers := make([]<-chan singleflight.Result, len(h.checks))
	for i, c := range h.checks {
		answers[i] = h.running.DoChan(c.Name, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
			defer cancel()
			return nil, c.Run(ctx)
		})
	}
	r := readiness{Ready: true, Checks: map[string]string{}}
	for i, c := range h.checks {
		text := "not ok: no answer"
		select {
		case a := <-answers[i]:
			text = word(a.Err)
		case <-ctx.Done():
		}
		r.Checks[c.Name] = text
		r.Ready = r.Ready && text == "ok"
	}
	return r
}

func word(err error) string {
	if err == nil {
		return "ok"
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	return "not ok: " + strings.ToValidUTF8(text[:min(len(text), maxReason)], "")
}

// ready answers 200 when all checks hold, and 503 otherwise.
func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	state := h.look(r.Context())
	w.Header().Set("Content-Type", "application/json")
	if !state.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(state) // a caller that is gone hears nothing
}

// alive answers that the process lives.
func alive(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte("{\"alive\":true}\n"))
}
