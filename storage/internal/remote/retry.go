package remote

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry says how often and how patiently a call is repeated.
type Retry struct {
	Attempts int           // at least 1
	Pause    time.Duration // before the second attempt; doubles, with jitter
}

// DefaultRetry gives a restarting server about three seconds.
var DefaultRetry = Retry{Attempts: 6, Pause: 100 * time.Millisecond}

// attempt calls f until it succeeds, fails for good, or the attempts are used
// up. It returns the last error as the library gave it.
func (s *Store) attempt(ctx context.Context, f func(attempt int) error) error {
	pause := s.options.Pause
	for i := 0; ; i++ {
		err := f(i)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		cause := s.cause(err)
		if !cause.again || i+1 >= s.options.Attempts {
			return cause.error()
		}
		if err := sleep(ctx, jitter(pause)); err != nil {
			return err
		}
		pause *= 2
	}
}

func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
