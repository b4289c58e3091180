package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hsmbackup/hsmbackup/cluster"
	"github.com/hsmbackup/hsmbackup/cluster/hsm"
	"github.com/hsmbackup/hsmbackup/integration/history"
)

// TestBackInSync lets an HSM miss keys in several ways, and waits until it has
// them. How long that takes from the moment it can be reached is in the log; the
// aim is 5 s.
func TestBackInSync(t *testing.T) {
	t.Parallel()
	c := newProxied(t, newRaceMachine(t), 3, "--min-copies", "2")
	client, alice := openAppliance(t, c.testCluster), open(t, c.testCluster)
	defer client.Close()
	defer alice.Close()
	c.awaitSync(t, client)
	const behind = 2
	for _, tt := range []struct {
		name      string
		away, let func()
	}{
		{"partition", func() { c.net.harm(fault{kind: "isolate", who: []int{behind}}) }, c.net.heal},
		{"deaf to others", func() { c.net.harm(fault{kind: "deafen", who: []int{behind}}) }, c.net.heal},
		{"kill -9 and restart", func() { c.process(behind).kill() }, func() { c.restart(t, behind) }},
		{"end and restart", func() { c.terminate(t, behind) }, func() { c.restart(t, behind) }},
		{"stopped process", func() { c.freeze(t, behind) }, func() { c.thaw(t, behind) }},
	} {
		tt.away()
		createKeys(t, alice, tt.name, 40)
		tt.let()
		began := time.Now()
		c.awaitSync(t, client)
		t.Logf("%s: back in sync after %.2f s", tt.name, time.Since(began).Seconds())
		c.everywhere(t, alice)
	}
}

// everywhere demands that every key is on every HSM.
func (c *proxied) everywhere(t testing.TB, alice *cluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	must(t, alice.Wait(ctx, 0)) // her connections may come back later than the HSMs'
	for k, err := range alice.Keys(ctx, hsm.Filter{}) {
		must(t, err)
		if len(k.Missing) > 0 {
			t.Errorf("in sync, and %s is not on %v", k.Label, k.Missing)
		}
	}
}

// TestRolledBackFolderRevivesNothing puts back an old image of an HSM's folder.
// Keys destroyed since then never work again, keys made since then are not lost,
// and in the end all HSMs hold the same.
func TestRolledBackFolderRevivesNothing(t *testing.T) {
	t.Parallel()
	c := newProxied(t, newRaceMachine(t), 3, "--min-copies", "2")
	appliance, alice := openAppliance(t, c.testCluster), open(t, c.testCluster)
	defer appliance.Close()
	defer alice.Close()
	j := newJournal()
	id := 0
	caller := &chaosCaller{cluster: alice, client: 1, say: func(e event) { j.note("test", e) }, keys: &board{}, ids: func() int { id++; return id }}
	const old = 2
	create := func(name string) (first int) {
		first = len(caller.keys.keys)
		for i := range 8 {
			caller.create(fmt.Sprint(name, i))
		}
		return first
	}
	create("before")
	c.awaitSync(t, appliance)
	c.terminate(t, old)
	image := c.copyFolder(t, old, "image")
	c.restart(t, old)
	after := create("after")
	c.awaitSync(t, appliance)
	for _, k := range []int{0, 1, 2, after, after + 1} {
		caller.destroy(caller.keys.keys[k])
	}
	c.awaitSync(t, appliance)
	j.done = append(j.done, history.Operation{Kind: history.Settled, Invoke: monotonic(), Return: monotonic(), Result: history.OK})

	c.terminate(t, old)
	c.putBack(t, old, image)
	c.start(t, old)
	used := create("meanwhile") // and whoever asks while it catches up is not misled
	for ctx, cancel := context.WithTimeout(context.Background(), deadline); ; {
		fresh := *caller
		fresh.cluster = open(t, c.testCluster)
		for _, k := range caller.keys.keys[:used] {
			caller.use(k)
			fresh.use(k)
		}
		must(t, fresh.cluster.Close())
		info, err := appliance.Info(ctx)
		if err == nil && info.InSync && info.InDoubt == 0 {
			cancel()
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("not in sync: %+v %v", info, err)
		}
	}
	c.awaitSync(t, appliance)
	c.everywhere(t, alice)
	for _, k := range caller.keys.keys {
		caller.use(k)
	}
	for _, v := range history.Check(j.history()) {
		t.Error(v)
	}
	j.summary(t)
}

// TestRollingRestart ends and starts one HSM after the other, as an operator does
// for an update, while callers work. Not one call fails.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	c := newProxied(t, newRaceMachine(t), 5, "--min-copies", "2")
	appliance := openAppliance(t, c.testCluster)
	defer appliance.Close()
	j := newJournal()
	var failed []event
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- runThreads(ctx, callerWork{Dir: c.dir, Client: 1, Seed: 1}, &board{}, func(e event) {
			j.note("test", e)
			j.mu.Lock()
			defer j.mu.Unlock()
			if e.Answered && e.Result != history.OK && e.Result != history.WasDestroyed {
				failed = append(failed, e)
			}
		})
	}()
	for i := range 5 {
		for end, n := time.Now().Add(deadline), len(j.history())+20; len(j.history()) < n && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		c.terminate(t, i)
		ended := time.Now()
		c.restart(t, i)
		c.awaitSync(t, appliance)
		t.Logf("HSM %d: ended within %.2f s, back in sync after another %.2f s", i+1, ended.Sub(began).Seconds(), time.Since(ended).Seconds())
	}
	cancel()
	must(t, <-done)
	for _, e := range failed {
		t.Errorf("%v: %s", e.Operation, e.Why)
	}
	for _, v := range history.Check(j.history()) {
		t.Error(v)
	}
	j.summary(t)
}
