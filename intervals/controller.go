package intervals

import (
	"math"
	"time"

	"github.com/coder/agentstatsd/agent"
)

const (
	// stepInterval is the shortest time between two steps.
	stepInterval = time.Minute
	// A step up follows only if a load was over its target for sustained, a step down
	// only if all were low for as long. Loads are means of half a minute. So a burst of
	// half a minute causes no step, and each step takes effect before the next.
	sustained = 45 * time.Second
	// A load above excess for sustainedExcess is far over its target. A busy process or
	// database cannot show how far: it takes all CPU, or writes all the time. The step
	// up comes earlier then, and is one of two factors at once.
	excess          = 1.3
	sustainedExcess = 15 * time.Second
	// A pending age can show how far. A load above backlog then leads to the highest
	// factor at once. Of CPU and flush time none is as high with the default targets.
	backlog = 2.5
	// headroom is the share of the target that a step down must leave free. That is
	// calculated: the load of agents is at most proportional to the number of their
	// messages.
	headroom = 0.15
	// If a step up follows on a step down within relapse, the step down was too early.
	// Then further ones wait twice as long, up to longestPatience.
	relapse         = 5 * time.Minute
	longestPatience = time.Hour
)

// MaxFactor is the highest factor that Options allow.
const MaxFactor = 4

// factors are the steps.
var factors = [...]float64{1, 1.5, 2, 3, MaxFactor}

// Kinds of loads, as the metrics label them.
const (
	kindCPU        = "cpu"
	kindPendingAge = "pending_age"
	kindFlush      = "flush"
)

// controller decides on the factor. It does no I/O and reads no clock.
//
// A load is over its target above 1, and far over it above excess. It is low if it would
// stay below 1 - headroom with the factor one step lower. In between nothing changes.
//
//	steady --a load is over--> over --for sustained--> a step up, then steady
//	over --far, for sustainedExcess--> a step up of two, then steady
//	over --far for as long, and above backlog--> a step to the highest, then steady
//	steady --all are low--> low --for patience--> a step down, then steady
//	over, low --not so any more--> steady
//
// After a step no other one follows within stepInterval.
type controller struct {
	max float64 // the highest factor

	factor  float64   // at the last call; 0: there was none
	changed time.Time // when it was first seen
	// over is the time since which a load is over its target, and farOver that since
	// which one is far over it. low is the time since which all are low. Zero: it is not
	// so.
	over, farOver, low time.Time
	lowered            time.Time     // time of the newest step down; zero: none since the last step up
	patience           time.Duration // how long loads must be low before a step down
}

func newController(limit float64) controller {
	return controller{max: limit, patience: sustained}
}

// step is a decision: the same factor, one of the next two up, the highest, or the next
// one down.
// peak is the highest load.
type step struct {
	factor float64
	peak   peak
}

// peak is the highest load of all replicas, relative to its target.
type peak struct {
	load          float64
	kind, replica string
}

// clamp returns a decided factor as this replica applies it: at least 1 and at most the
// limit. Other replicas may have a higher limit.
func (c *controller) clamp(factor float64) float64 {
	if math.IsNaN(factor) {
		return 1
	}
	return max(1, min(factor, c.max))
}

// next returns the step for the factor that is applied at now, and the loads. now
// must not decrease from call to call. The step may fail. The next call has the factor
// that is applied then.
func (c *controller) next(now time.Time, factor float64, replicas []agent.Replica) step {
	c.noteFactor(now, factor)
	p := highest(replicas)
	lower, higher := neighbours(factor, c.max)
	c.over = since(c.over, now, p.load > 1)
	c.farOver = since(c.farOver, now, p.load > excess)
	c.low = since(c.low, now, p.load*factor/lower < 1-headroom)
	next := factor
	switch {
	case now.Sub(c.changed) < stepInterval:
	case !c.farOver.IsZero() && now.Sub(c.farOver) >= sustainedExcess:
		if _, next = neighbours(higher, c.max); p.load > backlog {
			next = highestFactor(c.max)
		}
	case !c.over.IsZero() && now.Sub(c.over) >= sustained:
		next = higher
	case !c.low.IsZero() && now.Sub(c.low) >= c.patience:
		next = lower
	}
	return step{next, p}
}

// noteFactor records a change of the factor since the last call.
func (c *controller) noteFactor(now time.Time, factor float64) {
	before := c.factor
	if factor == before {
		return
	}
	c.factor, c.changed = factor, now
	c.over, c.farOver, c.low = time.Time{}, time.Time{}, time.Time{}
	switch {
	case factor < before:
		c.lowered = now
		return
	case c.lowered.IsZero(): // not the first step up after a step down
		return
	case now.Sub(c.lowered) < c.patience+relapse:
		c.patience = min(2*c.patience, longestPatience)
	default:
		c.patience = sustained
	}
	c.lowered = time.Time{}
}

// since returns before if that is set, else now; zero if so is false.
func since(before, now time.Time, so bool) time.Time {
	if !so {
		return time.Time{}
	}
	if before.IsZero() {
		return now
	}
	return before
}

// neighbours returns the next lower and the next higher factor, or the factor itself
// where there is none.
func neighbours(factor, limit float64) (lower, higher float64) {
	lower, higher = factor, factor
	for _, f := range factors {
		if f < factor {
			lower = f
		}
		if f > factor && f <= limit {
			return lower, f
		}
	}
	return lower, higher
}

// highestFactor returns the highest of factors up to limit, which is at least 1.
func highestFactor(limit float64) (f float64) {
	for _, f2 := range factors {
		if f2 <= limit {
			f = f2
		}
	}
	return f
}

// highest returns the highest load of all replicas.
func highest(replicas []agent.Replica) (p peak) {
	for _, r := range replicas {
		for _, l := range [...]struct {
			kind string
			load float64
		}{{kindCPU, r.Load.CPU}, {kindPendingAge, r.Load.PendingAge}, {kindFlush, r.Load.Flush}} {
			if p.kind == "" || l.load > p.load {
				p = peak{l.load, l.kind, r.Name}
			}
		}
	}
	return p
}
