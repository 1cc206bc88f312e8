// Package simulation runs three replicas of the service over one database and one
// pubsub, with agents and a coderd, in a bubble of virtual time. Faults are drawn at
// random. What is promised is checked after each step.
package simulation

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/coder/agentstatsd/fleet"
	"github.com/coder/agentstatsd/internal/bubble"
)

var (
	without   = flag.String("without", "", "do without these kinds of events, separated by commas")
	oneSeed   = flag.Uint64("seed", 0, "run this seed only, and print its steps with -v")
	manySeeds = flag.Uint64("seeds", 100, "run the seeds from 1 to this one")
)

const (
	steps     = 200
	minFaults = 5
	// quiesceEvery so many steps all faults are mended, and what follows is waited
	// for.
	quiesceEvery = 50
)

// seeds returns how many are run: fewer in the short mode of go test.
func seeds() uint64 {
	if testing.Short() {
		return min(*manySeeds, 20)
	}
	return *manySeeds
}

func TestReplicas(t *testing.T) {
	if *oneSeed != 0 {
		runSeed(t, *oneSeed)
		return
	}
	for seed := uint64(1); seed <= seeds(); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runSeed(t, seed)
		})
	}
}

// While the database and the pubsub work no session ends as outdated, however agents
// move and start anew, and replicas stop and start. Each session knows the one before, and
// those that were recorded when it opened.
func TestMovesAlone(t *testing.T) {
	if *oneSeed != 0 {
		runMoves(t, *oneSeed)
		return
	}
	for seed := uint64(1); seed <= seeds()/10; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runMoves(t, seed)
		})
	}
}

func runMoves(t *testing.T, seed uint64) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(seed)
		w.calm, w.profile = true, everything
		for _, kind := range []string{"move", "process", "unnoticed", "lifecycle", "network", "health", "age"} {
			w.omitted[kind] = false
		}
		for _, kind := range []string{"deregister", "bounce", "sync"} { // their late writes lose
			w.omitted[kind] = true
		}
		err := w.run()
		outdated := w.sessionsEnded(fleet.EndOutdated)
		w.end()
		if err != nil {
			t.Errorf("seed %d, step %d: %v", seed, w.step, err)
		}
		if outdated > 0 {
			t.Errorf("seed %d: %v sessions ended as outdated\n%s\nreplay: go test ./simulation -run TestMovesAlone -seed %d",
				seed, outdated, strings.Join(w.trace, "\n"), seed)
		}
	})
}

// sessionsEnded counts those of all processes that ever were.
func (w *world) sessionsEnded(end fleet.End) (count float64) {
	for _, p := range w.all {
		for _, r := range p.registries {
			families, err := r.Gather()
			if err != nil {
				panic(err)
			}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					if f.GetName() == "agentstatsd_sessions_ended_total" && m.GetLabel()[0].GetValue() == string(end) {
						count += m.GetCounter().GetValue()
					}
				}
			}
		}
	}
	return count
}

func runSeed(t *testing.T, seed uint64) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(seed)
		err := w.run()
		w.end()
		if *oneSeed != 0 {
			for _, line := range w.trace {
				t.Log(line)
			}
		}
		if err != nil {
			t.Errorf("seed %d, step %d: %v\n(%s, without %v)\nreplay: go test ./simulation -run TestReplicas -seed %d -v", seed, w.step, err, profileNames[w.profile], w.omittedKinds(), seed)
		}
	})
}

func (w *world) run() error {
	if err := w.quiesce(); err != nil { // everybody starts
		return fmt.Errorf("before any fault: %w", err)
	}
	w.register(w.slots[0], 1, 2, 3, 4)
	for range steps {
		if err := w.act(); err != nil {
			return err
		}
		if w.step%quiesceEvery == 0 {
			for w.faults < w.step/quiesceEvery*minFaults/4+1 {
				w.fault()
			}
			if err := w.quiesce(); err != nil {
				return fmt.Errorf("after all was mended: %w", err)
			}
		}
	}
	if w.faults < minFaults {
		return fmt.Errorf("%d faults", w.faults)
	}
	return nil
}
