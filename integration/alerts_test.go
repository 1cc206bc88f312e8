package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"
)

const (
	// alertFactor is by how much time passes faster for the rules: an hour is a minute.
	alertFactor = 60
	// alertInterval is a quarter of a minute by that.
	alertInterval = 15 * time.Second / alertFactor
)

// alertFault is a fault that an alert is for. docs/runbooks/README.md has each of them.
type alertFault struct {
	alert, fault string
	// with are labels that tell what the alert fires for.
	with map[string]string
	// companions are other alerts that the fault may fire as well.
	companions []string
	// quick ones are part of make test, the others of make soak.
	quick bool
	// start starts what the fault is done to, in good order.
	start func(t *testing.T) faulty
}

// faulty is what a fault can be done to.
type faulty struct {
	targets []string // that are scraped
	// inject begins the fault, mend ends it.
	inject, mend func()
}

// Each alert fires while a fault lasts that is done to real processes, and resolves after it.
// None fires before, and no other one than the fault's companions at any time. The rules are
// those of deploy/prometheus, but that times pass faster.
func TestAlertsFire(t *testing.T) {
	t.Parallel()
	for _, f := range alertFaults {
		if !f.quick && !*soak {
			continue
		}
		t.Run(f.alert+"/"+strings.ReplaceAll(f.fault, " ", "_"), func(t *testing.T) {
			t.Parallel()
			takePlace(t, places)
			f.run(t)
		})
	}
}

func (f *alertFault) run(t *testing.T) {
	is := f.start(t)
	m := monitor(t, scaledRules(t, alertFactor), alertInterval, is.targets...)
	m.awaitScraped(t, len(is.targets))
	m.awaitSilent(t, f.companions)

	is.inject()
	began := time.Now()
	text := m.await(t, f.alert, f.with, rules.StateFiring, 100*time.Second)
	t.Logf("fires after %v: %s", time.Since(began).Round(100*time.Millisecond), text)
	is.mend()
	ended := time.Now()
	m.await(t, f.alert, f.with, rules.StateInactive, 100*time.Second)
	t.Logf("resolves after %v", time.Since(ended).Round(100*time.Millisecond))
	for _, name := range m.fired(t) {
		require.True(t, name == f.alert || slices.Contains(f.companions, name), "%s fires, too", name)
	}
}
