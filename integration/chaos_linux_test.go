package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

const (
	chaosHSMs    = 5
	chaosCallers = 2 // processes, besides the test itself
	chaosLength  = 30 * time.Second
)

// TestChaos runs five HSMs and callers in three processes, and lets go wrong what
// a seed says: processes are killed, stopped and ended, links are cut, one way or
// both, slowed and reset, callers are killed. Afterwards everything heals, and
// then: nothing acknowledged is lost, nothing destroyed lives, what failed is
// nowhere, all HSMs hold the same, and what all callers saw of each key can have
// happened.
//
// `make chaos TIME=10m SEED=1` runs longer, and again what a seed did.
func TestChaos(t *testing.T) {
	t.Parallel()
	length, seed := chaosLength, rand.Uint64N(1e6)
	if s := os.Getenv("HSMBACKUP_CHAOS_TIME"); s != "" {
		var err error
		length, err = time.ParseDuration(s)
		must(t, err)
	}
	if s := os.Getenv("HSMBACKUP_CHAOS_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		must(t, err)
	}
	t.Logf("seed %d, %s; again: make chaos SEED=%d TIME=%s", seed, length, seed, length)
	c := &chaos{proxied: newProxied(t, newMachine(t), chaosHSMs, "--min-copies", "2"), t: t, seed: seed, journal: newJournal()}
	stop := c.startCallers()
	c.inflict(schedule(seed, length, chaosHSMs, chaosCallers))
	c.repair()
	stop()
	c.settle()
	c.audit()
	c.judge()
	c.journal.summary(t)
}

// chaos is one run.
type chaos struct {
	*proxied
	*journal
	t    *testing.T
	seed uint64

	power   sync.RWMutex // held while one HSM is harmed; alone, while all are
	clients sync.Mutex
	client  int
	callers [chaosCallers]*callerProcess
}

// nextClients returns the number of the first client of a new process.
func (c *chaos) nextClients() int {
	c.clients.Lock()
	defer c.clients.Unlock()
	first := c.client
	c.client += callerThreads
	return first
}

// startCallers starts those in this process and those in others. stop lets them
// finish what they are at.
func (c *chaos) startCallers() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	keys := &board{}
	c.join("test", keys.add)
	work := callerWork{Dir: c.dir, Client: c.nextClients(), Seed: c.seed}
	go func() {
		done <- runThreads(ctx, work, keys, func(e event) { c.note("test", e) })
	}()
	for i := range c.callers {
		c.callers[i] = c.newCaller()
	}
	return func() {
		cancel()
		must(c.t, <-done)
		for _, p := range c.callers {
			p.finish(c.t)
		}
	}
}

// callerProcess is a process that runs runCaller.
type callerProcess struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	err   output
	done  chan struct{} // closed when all it said is noted
}

func (c *chaos) newCaller() *callerProcess {
	first := c.nextClients()
	p := &callerProcess{name: fmt.Sprint("caller-", first), done: make(chan struct{})}
	keys := make(chan knownKey, 1<<16)
	work := callerWork{Dir: c.dir, Client: first, Seed: c.seed, Keys: c.join(p.name, func(k knownKey) { keys <- k })}
	if n := len(work.Keys); n > 200 { // the environment is bounded
		work.Keys = work.Keys[n-200:]
	}
	text, err := json.Marshal(work)
	must(c.t, err)
	self, err := os.Executable()
	must(c.t, err)
	p.cmd = exec.Command(self)
	p.cmd.Env, p.cmd.Dir, p.cmd.SysProcAttr = append(c.env, callerEnv+"="+string(text)), c.machine.dir, childAttributes()
	p.cmd.Stderr = &p.err
	p.stdin, err = p.cmd.StdinPipe()
	must(c.t, err)
	out, err := p.cmd.StdoutPipe()
	must(c.t, err)
	must(c.t, p.cmd.Start())
	c.t.Cleanup(func() { p.cmd.Process.Kill(); noRace(c.t, p.err.String()) })
	go p.talk(keys)
	go func() {
		defer close(p.done)
		for in := bufio.NewScanner(out); in.Scan(); {
			var e event
			if err := json.Unmarshal(in.Bytes(), &e); err == nil { // a killed caller leaves half a line
				c.note(p.name, e)
			}
		}
		p.cmd.Wait()
		c.leave(p.name)
	}()
	return p
}

// talk tells the process of keys.
func (p *callerProcess) talk(keys <-chan knownKey) {
	for {
		select {
		case k := <-keys:
			line, err := json.Marshal(k)
			if err == nil {
				_, err = p.stdin.Write(append(line, '\n'))
			}
			if err != nil {
				return
			}
		case <-p.done:
			return
		}
	}
}

// finish ends the process's input and waits for it to end.
func (p *callerProcess) finish(t testing.TB) {
	t.Helper()
	p.stdin.Close()
	select {
	case <-p.done:
	case <-time.After(deadline):
		t.Fatalf("%s does not end: %s", p.name, p.err.String())
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ends with code %d: %s", p.name, code, p.err.String())
	}
}

// inflict lets everything go wrong, each lane by itself.
func (c *chaos) inflict(faults []fault) {
	began := time.Now()
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for _, f := range faults {
				if f.lane != lane {
					continue
				}
				time.Sleep(time.Until(began.Add(f.at)))
				c.t.Log(f)
				c.fault(f.kind)
				c.suffer(f)
			}
		})
	}
	wg.Wait()
}

// suffer lets one fault happen and pass.
func (c *chaos) suffer(f fault) {
	switch f.lane {
	case laneNetwork:
		c.net.harm(f)
		time.Sleep(f.lasts)
		c.net.heal()
	case laneCallers:
		p := c.callers[f.who[0]]
		p.cmd.Process.Kill()
		<-p.done
		c.callers[f.who[0]] = c.newCaller()
	case lanePower:
		c.power.Lock()
		defer c.power.Unlock()
		c.crash(f)
	default:
		c.power.RLock()
		defer c.power.RUnlock()
		c.crash(f)
	}
}

// crash does something to processes of HSMs, and has them run again.
func (c *chaos) crash(f fault) {
	for _, i := range f.who {
		switch f.kind {
		case "freeze":
			c.freeze(c.t, i)
		case "terminate":
			c.terminate(c.t, i)
		default:
			c.process(i).kill()
		}
	}
	time.Sleep(f.lasts)
	for _, i := range f.who {
		if f.kind == "freeze" {
			c.thaw(c.t, i)
			continue
		}
		c.start(c.t, i)
		defer c.process(i).waitReady(c.t)
	}
}

// repair heals everything and starts what does not run.
func (c *chaos) repair() {
	c.net.heal()
	for i := range c.hsms {
		if !c.process(i).alive() {
			c.t.Errorf("HSM %d has ended by itself: %s", i+1, c.process(i).stderr.String())
			c.restart(c.t, i)
		}
	}
}

// settle waits until all HSMs hold the same and nothing is provisional any more.
func (c *chaos) settle() {
	began := time.Now()
	client := openAppliance(c.t, c.testCluster)
	defer client.Close()
	c.awaitSync(c.t, client)
	c.t.Logf("in sync %.1f s after everything had healed", time.Since(began).Seconds())
	time.Sleep(time.Duration(c.provisionalUntil() - monotonic()))
	c.awaitSync(c.t, client)
	c.done = append(c.done, history.Operation{Kind: history.Settled, Invoke: monotonic(), Return: monotonic(), Result: history.OK})
}

// awaitSync polls until every HSM answers, all hold the same, and none is in doubt.
func (c *proxied) awaitSync(t testing.TB, client *cluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for {
		info, err := client.Info(ctx)
		if err == nil && info.InSync && info.InDoubt == 0 && info.UnderReplicated == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("not in sync: %+v, %v", info, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// audit looks for every key that anybody tried to make, once for all callers: by
// its label, and by using it.
func (c *chaos) audit() {
	client := open(c.t, c.testCluster)
	defer client.Close()
	byLabel := map[string]hsm.KeyRef{}
	for k, err := range client.Keys(context.Background(), hsm.Filter{}) {
		must(c.t, err)
		if byLabel[k.Label] != 0 {
			c.t.Errorf("one creation of %s made two keys", k.Label)
		}
		byLabel[k.Label] = k.Ref
		if len(k.Coverage) != chaosHSMs {
			c.t.Errorf("key %s is on %v only", k.Label, k.Coverage)
		}
	}
	auditor := &chaosCaller{cluster: client, client: c.nextClients(), say: func(e event) { c.note("audit", e) }}
	for i, label := range c.labels() {
		auditor.ids = func() int { return i }
		ref, listed := byLabel[label], byLabel[label] != 0
		delete(byLabel, label)
		if known := c.refs[label]; listed && known != 0 && known != ref {
			c.t.Errorf("key %s was made as %s and is %s", label, known, ref)
		} else if known != 0 {
			auditor.use(knownKey{label, known})
		} else if listed {
			auditor.use(knownKey{label, ref})
		}
		e := auditor.ask(history.Use, label)
		auditor.answer(e, map[bool]history.Outcome{true: history.OK, false: history.NotFound}[listed], nil)
	}
	for label, ref := range byLabel {
		c.t.Errorf("nobody made key %s, %s", label, ref)
	}
}

// judge demands that what all saw can have happened.
func (c *chaos) judge() {
	for _, w := range c.wrong {
		c.t.Error(w)
	}
	h := c.history()
	bad := history.Check(h)
	for _, v := range bad {
		c.t.Errorf("%v", v)
		dir := os.Getenv("HSMBACKUP_CHAOS_OUT")
		if dir == "" {
			continue
		}
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%d-%s.html", c.seed, v.Key)))
		must(c.t, err)
		must(c.t, v.Visualize(f))
		must(c.t, f.Close())
	}
	acked := 0
	for _, op := range h {
		if op.Kind == history.Create && op.Result == history.OK {
			acked++
		}
	}
	if acked == 0 {
		c.t.Error("no key was made at all")
	}
	c.t.Logf("%d operations on %d keys, %d of them acknowledged, checked; %d keys do not fit", len(h), len(c.labels()), acked, len(bad))
}
