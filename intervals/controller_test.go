package intervals

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/agent"
)

// model is a service whose agents follow the factor late. Each applies it after its
// next message. At a factor of 1 it sends one in 10 s.
type model struct {
	t          require.TestingT
	controller controller
	now        time.Time
	factor     float64
	random     *rand.Rand
	// steepness is how much faster than the messages their cost falls; 1: not at all.
	steepness float64

	agents []modelAgent
	recent []float64 // what was caused in each measureInterval of the loadWindow
	steps  []modelStep
}

type modelAgent struct {
	factor float64
	next   time.Time
}

type modelStep struct {
	at       time.Time
	from, to float64
}

func newModel(t require.TestingT, limit, factor float64, seed uint64) *model {
	m := &model{
		t: t, controller: newController(limit), now: time.Unix(1000, 0), factor: factor, steepness: 1,
		random: rand.New(rand.NewPCG(seed, 0)),
	}
	for range 50 {
		m.agents = append(m.agents, modelAgent{factor, m.now.Add(time.Duration(m.random.Int64N(int64(10 * time.Second * time.Duration(math.Ceil(factor))))))})
	}
	return m
}

// run has agents cause demand times the target, at a factor of 1, for a while.
func (m *model) run(demand float64, d time.Duration) {
	for end := m.now.Add(d); m.now.Before(end); {
		m.now = m.now.Add(measureInterval)
		caused := 0.0
		for i := range m.agents {
			a := &m.agents[i]
			if !m.now.Before(a.next) {
				a.factor = m.factor
				a.next = m.now.Add(time.Duration(a.factor * float64(10*time.Second)))
			}
			caused += 1 / math.Pow(a.factor, m.steepness) / float64(len(m.agents))
		}
		caused *= demand * (0.96 + 0.08*m.random.Float64())
		m.recent = append(m.recent, min(caused, 1.43)) // there is no more CPU than that
		m.recent = m.recent[max(0, len(m.recent)-int(loadWindow/measureInterval)):]
		load := 0.0
		for _, l := range m.recent {
			load += l / float64(len(m.recent))
		}
		m.decide([]agent.Replica{{Name: "busy", Load: agent.Load{CPU: load}}, {Name: "idle", Load: agent.Load{Flush: 0.01}}})
	}
}

// decide has the controller decide, and checks the step.
func (m *model) decide(replicas []agent.Replica) {
	s := m.controller.next(m.now, m.factor, replicas)
	if s.factor == m.factor {
		return
	}
	from, to := slices.Index(factors[:], m.factor), slices.Index(factors[:], s.factor)
	allowed := []int{from - 1, from + 1, from + 2}
	if s.peak.load > backlog {
		allowed = append(allowed, slices.Index(factors[:], m.controller.max))
	}
	require.Contains(m.t, allowed, to, "from %v to %v", m.factor, s.factor)
	require.LessOrEqual(m.t, s.factor, m.controller.max)
	if n := len(m.steps); n > 0 {
		require.GreaterOrEqual(m.t, m.now.Sub(m.steps[n-1].at), stepInterval)
	}
	m.steps = append(m.steps, modelStep{m.now, m.factor, s.factor})
	m.factor = s.factor
}

// A steady load leads to as many steps in one direction as it takes, and to none in the
// other.
func TestSteadyLoad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom(factors[:]).Draw(t, "limit")
		factor := min(limit, rapid.SampledFrom(factors[:]).Draw(t, "factor"))
		demand := rapid.Float64Range(0.02, 6).Draw(t, "demand")
		m := newModel(t, limit, factor, rapid.Uint64().Draw(t, "seed"))
		m.run(demand, 2*time.Hour)
		for i, s := range m.steps {
			require.Equal(t, m.steps[0].to > m.steps[0].from, s.to > s.from, "step %d of %v", i, m.steps)
		}
		lower, _ := neighbours(m.factor, limit)
		if m.factor < limit {
			require.LessOrEqual(t, demand/m.factor, 1.05)
		}
		if m.factor > 1 {
			require.GreaterOrEqual(t, demand/lower, 0.8)
		}
	})
}

// After twice the load for five minutes all is as before within five minutes, whatever the
// highest factor.
func TestOverloadPasses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom(factors[1:]).Draw(t, "limit")
		usual := rapid.Float64Range(0.1, 0.8).Draw(t, "usual")
		m := newModel(t, limit, 1, rapid.Uint64().Draw(t, "seed"))
		m.run(usual, 10*time.Minute)
		require.Empty(t, m.steps)
		over := rapid.Float64Range(1.2, 4).Draw(t, "overload")
		m.run(over, 5*time.Minute)
		require.NotEmpty(t, m.steps)
		require.Less(t, m.steps[0].at.Sub(time.Unix(1600, 0)), 100*time.Second)
		m.run(usual, 5*time.Minute)
		require.Equal(t, 1.0, m.factor, "%v", m.steps)
		steps := len(m.steps)
		m.run(usual, time.Hour)
		require.Len(t, m.steps, steps)
	})
}

// A burst changes nothing.
func TestBurst(t *testing.T) {
	m := newModel(t, 4, 1, 1)
	for range 30 {
		m.run(5, 25*time.Second)
		m.run(0.2, time.Minute)
	}
	require.Empty(t, m.steps)
}

// A step can reduce the load by much more than its factor, as with agents whose values
// change each second. Then steps down follow less and less often.
func TestSteepLoad(t *testing.T) {
	m := newModel(t, 4, 1, 1)
	m.steepness = 5
	m.run(1.2, 6*time.Hour)
	require.Greater(t, len(m.steps), 3)
	require.Less(t, len(m.steps), 25)
	// An hour later that is forgotten.
	m.run(0.1, 2*time.Hour)
	require.Equal(t, 1.0, m.factor)
	m.steepness = 1
	m.run(1.2, 5*time.Minute)
	require.Equal(t, 1.5, m.factor)
	m.run(0.1, 2*time.Minute)
	require.Equal(t, 1.0, m.factor)
}

// Whatever the loads, whoever decides and whether it is done, steps are what they should
// be.
func TestAnyLoad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t, rapid.SampledFrom(factors[:]).Draw(t, "limit"), 1, 1)
		for range rapid.IntRange(1, 300).Draw(t, "calls") {
			m.now = m.now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "wait")))
			load := rapid.Float64Range(0, 3)
			replicas := []agent.Replica{
				{Load: agent.Load{CPU: load.Draw(t, "cpu"), PendingAge: load.Draw(t, "pending")}},
				{Load: agent.Load{Flush: load.Draw(t, "flush")}},
			}
			if rapid.Bool().Draw(t, "leads") {
				m.decide(replicas)
			} else {
				m.controller.next(m.now, m.factor, replicas)
			}
		}
	})
}

func TestClamp(t *testing.T) {
	c := newController(1.5)
	for given, want := range map[float64]float64{0.5: 1, 1: 1, 1.5: 1.5, 3: 1.5, math.Inf(1): 1.5, math.Inf(-1): 1} {
		require.Equal(t, want, c.clamp(given), given)
	}
	require.Equal(t, 1.0, c.clamp(math.NaN()))
	for factor, want := range map[float64][2]float64{1: {1, 1.5}, 1.2: {1, 1.5}, 1.5: {1, 2}, 2: {1.5, 2}, 3: {2, 3}, 9: {4, 9}} {
		lower, higher := neighbours(factor, 2)
		require.Equal(t, want, [2]float64{lower, higher}, factor)
	}
}

// The reason of a step is the highest load, and whose it is.
func TestHighest(t *testing.T) {
	require.Equal(t, peak{1.25, kindPendingAge, "b"}, highest([]agent.Replica{
		{Name: "a", Load: agent.Load{CPU: 1.2}}, {Name: "b", Load: agent.Load{CPU: 0.3, PendingAge: 1.25, Flush: 1}},
	}))
}

// What takes all CPU gets a step of two factors after some 40 s.
func TestFarOver(t *testing.T) {
	m := newModel(t, 4, 1, 1)
	m.run(0.5, 5*time.Minute)
	start := m.now
	m.run(3, 3*time.Minute)
	require.Equal(t, []float64{2, 4}, []float64{m.steps[0].to, m.steps[1].to})
	require.Less(t, m.steps[0].at.Sub(start), 50*time.Second)
	require.LessOrEqual(t, m.steps[1].at.Sub(m.steps[0].at), stepInterval+measureInterval)

	m = newModel(t, 1.5, 1, 1)
	m.run(3, 3*time.Minute)
	require.Equal(t, 1.5, m.factor, "at most the limit")
}

// Metadata that is pending for long leads to the highest factor at once.
func TestBacklog(t *testing.T) {
	for limit, want := range map[float64]float64{4: 4, 3: 3, 1.5: 1.5} {
		m := newModel(t, limit, 1, 1)
		start := m.now
		for len(m.steps) == 0 {
			m.now = m.now.Add(measureInterval)
			m.decide([]agent.Replica{{Load: agent.Load{CPU: 0.5, PendingAge: 1.1 * backlog}}})
		}
		require.Equal(t, want, m.factor)
		// The first minute is that of a factor that was not known before.
		require.LessOrEqual(t, m.now.Sub(start), stepInterval+measureInterval)
	}
}
