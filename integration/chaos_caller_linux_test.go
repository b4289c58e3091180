package integration

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/cluster/profile"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

// Callers bound their operations, so that what a killed caller leaves is decided
// soon: a provisional key lives for creationTimeout and 15 s.
const (
	creationTimeout = 3 * time.Second
	useTimeout      = 8 * time.Second
	callerLease     = creationTimeout + 15*time.Second
)

// monotonic is one clock for all processes of this machine.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// event is a line that a caller says: before it asks, and when it is answered.
// The first is out before the cluster hears of anything, so that a caller that is
// killed leaves no operation that nobody knows of.
type event struct {
	ID       int // of the operation, one per process
	Answered bool
	history.Operation
	Ref  hsm.KeyRef `json:"ref,omitempty"`  // of a key that was made, or almost
	Used string     `json:"used,omitempty"` // what the key made of its label
	Why  string     `json:"why,omitempty"`
}

// knownKey is a key that callers tell each other of.
type knownKey struct {
	Label string     `json:"label"`
	Ref   hsm.KeyRef `json:"ref"`
}

// chaosCaller creates, uses and destroys keys, one after the other.
type chaosCaller struct {
	cluster *cluster.Cluster
	client  int
	rng     *rand.Rand
	say     func(event)
	keys    *board
	ids     func() int
}

// board is the keys a process knows of.
type board struct {
	mu   sync.Mutex
	keys []knownKey
}

func (b *board) add(k knownKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, k)
}

// pick prefers young keys: most of what can go wrong goes wrong soon.
func (b *board) pick(rng *rand.Rand) (knownKey, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.keys)
	if n == 0 {
		return knownKey{}, false
	}
	if rng.IntN(4) > 0 {
		return b.keys[n-1-rng.IntN(min(n, 12))], true
	}
	return b.keys[rng.IntN(n)], true
}

// run works until the context ends; the operation under way is finished.
func (c *chaosCaller) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		k, any := c.keys.pick(c.rng)
		switch what := c.rng.IntN(100); {
		case !any || what < 22:
			c.create(fmt.Sprintf("c%d-%d", c.client, i))
		case what < 34:
			c.destroy(k)
		default:
			c.use(k)
		}
		time.Sleep(time.Duration(20+c.rng.IntN(40)) * time.Millisecond)
	}
}

func (c *chaosCaller) ask(kind history.Kind, label string) event {
	e := event{ID: c.ids(), Operation: history.Operation{Client: c.client, Kind: kind, Key: label, Invoke: monotonic(), Return: history.Never, Result: history.Unknown}}
	c.say(e)
	return e
}

func (c *chaosCaller) answer(e event, result history.Outcome, err error) {
	e.Answered, e.Return, e.Result = true, monotonic(), result
	if err != nil {
		e.Why = err.Error()
	}
	c.say(e)
}

// create makes a key. One whose creation failed is told to everybody: none may
// ever find it.
func (c *chaosCaller) create(label string) {
	e := c.ask(history.Create, label)
	ctx, cancel := context.WithTimeout(context.Background(), 4*creationTimeout)
	defer cancel()
	made, err := c.cluster.Create(ctx, aesKey(label), cluster.Policy{Timeout: creationTimeout})
	var short *cluster.CopiesError
	result := history.Nothing
	switch {
	case err == nil:
		result, e.Ref = history.OK, made.Keys[0].Ref
	case errors.As(err, &short):
		e.Residue = len(short.Undelivered) > 0
		if len(short.Refs) > 0 {
			e.Ref = short.Refs[0]
		}
		if strings.Contains(short.Outcome, "not known") {
			result = history.Unknown
		}
	}
	c.answer(e, result, err)
	if e.Ref != 0 {
		c.keys.add(knownKey{label, e.Ref})
	}
}

func (c *chaosCaller) use(k knownKey) {
	e := c.ask(history.Use, k.Label)
	ctx, cancel := context.WithTimeout(context.Background(), useTimeout)
	defer cancel()
	mac, err := c.cluster.Use(ctx, hsm.Use{Kind: hsm.UseMAC, Key: k.Ref, Params: hsm.Params{Mechanism: "aes-cmac"}, Data: []byte(k.Label)})
	if err == nil {
		e.Used = hex.EncodeToString(mac)
	}
	c.answer(e, evidence(err), err)
}

func (c *chaosCaller) destroy(k knownKey) {
	e := c.ask(history.Destroy, k.Label)
	ctx, cancel := context.WithTimeout(context.Background(), useTimeout)
	defer cancel()
	changed, err := c.cluster.Change(ctx, hsm.Change{Kind: hsm.ChangeDestroy, Ref: k.Ref})
	var short *cluster.CopiesError
	result := evidence(err)
	switch {
	case err == nil:
		e.Residue = len(changed.Missing) > 0
	case result == history.NotFound || result == history.WasDestroyed:
	case changed == nil && errors.As(err, &short):
		result = history.Nothing
	default:
		result = history.Unknown
	}
	c.answer(e, result, err)
}

// evidence is what an answer says about the key.
func evidence(err error) history.Outcome {
	switch {
	case err == nil:
		return history.OK
	case errors.Is(err, hsm.ErrDestroyed):
		return history.WasDestroyed
	case errors.Is(err, hsm.ErrUnavailable):
		return history.Nothing
	case errors.Is(err, hsm.ErrNotFound):
		return history.NotFound
	}
	return history.Nothing
}

// openCaller connects as alice, and keeps trying while no HSM answers.
func openCaller(ctx context.Context, dir string) (*cluster.Cluster, error) {
	p, err := profile.Load(dir)
	if err != nil {
		return nil, err
	}
	name, password, _ := strings.Cut(alicePIN, ":")
	for {
		c, err := cluster.Open(ctx, p, cluster.Credential{Role: hsm.RoleCryptoUser, Name: name, Password: hsm.NewSecret([]byte(password))})
		if err == nil || ctx.Err() != nil || !errors.Is(err, hsm.ErrUnavailable) {
			return c, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// callerWork is what a caller process is told, as JSON in its environment.
type callerWork struct {
	Dir    string
	Client int // the first; each further thread is the next
	Seed   uint64
	Keys   []knownKey
}

const (
	callerEnv     = "HSMBACKUP_TEST_CALLER"
	callerThreads = 2
)

// callerMain is the main function of a caller process: this program, started by
// TestChaos. It learns of keys from its standard input and says what it does on
// its standard output; when the input ends it finishes its work and ends.
func callerMain(text string) int {
	if err := runCaller(text); err != nil {
		fmt.Fprintln(os.Stderr, "caller:", err)
		return 1
	}
	return 0
}

func runCaller(text string) error {
	var w callerWork
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return err
	}
	keys := &board{keys: w.Keys}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			var k knownKey
			if json.Unmarshal(in.Bytes(), &k) == nil {
				keys.add(k)
			}
		}
	}()
	var mu sync.Mutex
	say := func(e event) {
		mu.Lock()
		defer mu.Unlock()
		line, err := json.Marshal(e)
		if err == nil {
			_, err = os.Stdout.Write(append(line, '\n'))
		}
		if err != nil {
			os.Exit(1) // the test has ended
		}
	}
	err := runThreads(ctx, w, keys, say)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// runThreads opens the cluster and runs callers on it until the context ends.
func runThreads(ctx context.Context, w callerWork, keys *board, say func(event)) error {
	c, err := openCaller(ctx, w.Dir)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	id := 0
	ids := func() int {
		mu.Lock()
		defer mu.Unlock()
		id++
		return id
	}
	var wg sync.WaitGroup
	for i := range callerThreads {
		caller := &chaosCaller{cluster: c, client: w.Client + i, rng: rand.New(rand.NewPCG(w.Seed, uint64(w.Client+i))), say: say, keys: keys, ids: ids}
		wg.Go(func() { caller.run(ctx) })
	}
	wg.Wait()
	return c.Close()
}

// TestCallerSaysWhatItKnows: what an error is taken for.
func TestCallerSaysWhatItKnows(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want history.Outcome
	}{
		{nil, history.OK},
		{fmt.Errorf("x: %w", hsm.ErrDestroyed), history.WasDestroyed},
		{fmt.Errorf("x: %w", hsm.ErrNotFound), history.NotFound},
		{fmt.Errorf("%w; not every HSM answered: %w", hsm.ErrNotFound, hsm.ErrUnavailable), history.Nothing},
		{&cluster.AvailabilityError{Ref: 1, Min: 2}, history.Nothing},
		{cluster.ErrNoHSM, history.Nothing},
	} {
		if got := evidence(tt.err); got != tt.want {
			t.Errorf("%v is taken for %q, want %q", tt.err, got, tt.want)
		}
	}
}
