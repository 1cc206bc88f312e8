// Package simulation runs three replicas of the service over one database and one
// pubsub, with agents and a coderd, in a bubble of virtual time, and has things go
// wrong at random. What is promised is checked after each step.
package simulation

import (
	"flag"
	"fmt"
	"testing"
	"testing/synctest"
)

var (
	without   = flag.String("without", "", "do without these kinds of events, separated by commas")
	oneSeed   = flag.Uint64("seed", 0, "run this seed only, and print its steps with -v")
	manySeeds = flag.Uint64("seeds", 100, "run the seeds from 1 to this one")
)

const (
	steps     = 200
	minFaults = 5
	// settleEvery so many steps all faults are mended, and what follows is waited
	// for.
	settleEvery = 50
)

func TestReplicas(t *testing.T) {
	if *oneSeed != 0 {
		runSeed(t, *oneSeed)
		return
	}
	for seed := uint64(1); seed <= *manySeeds; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			runSeed(t, seed)
		})
	}
}

func runSeed(t *testing.T, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed)
		err := w.run()
		w.end()
		if *oneSeed != 0 {
			for _, line := range w.trace {
				t.Log(line)
			}
		}
		if err != nil {
			t.Errorf("seed %d, step %d: %v\n(without %v)\nreplay: go test ./simulation -run TestReplicas -seed %d -v", seed, w.step, err, w.omittedKinds(), seed)
		}
	})
}

func (w *world) run() error {
	if err := w.settle(); err != nil { // everybody starts
		return fmt.Errorf("before any fault: %w", err)
	}
	w.register(w.slots[0], 1, 2, 3, 4)
	for range steps {
		if err := w.act(); err != nil {
			return err
		}
		if w.step%settleEvery == 0 {
			for w.faults < w.step/settleEvery*minFaults/4+1 {
				w.fault()
			}
			if err := w.settle(); err != nil {
				return fmt.Errorf("after all was mended: %w", err)
			}
		}
	}
	if w.faults < minFaults {
		return fmt.Errorf("%d faults", w.faults)
	}
	return nil
}
