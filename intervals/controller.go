package intervals

import (
	"math"
	"time"

	"github.com/coder/agentstatsd/agent"
)

const (
	// stepInterval is the shortest time between two steps.
	stepInterval = time.Minute
	// sustained is for how long a load must be over its target, without a break, before
	// a step up, and low before a step down. Loads are means of half a minute. So a burst
	// of half a minute leads to nothing, and what follows on a step is seen before the next.
	sustained = 45 * time.Second
	// headroom is what a step down must leave free of the target, by calculation: what
	// agents cause grows with the number of their messages at most.
	headroom = 0.15
	// A step down that was too early is followed by a step up within relapse. Then the
	// next ones wait twice as long, up to longestPatience.
	relapse         = 5 * time.Minute
	longestPatience = time.Hour
)

// factors are the steps.
var factors = [...]float64{1, 1.5, 2, 3, 4}

// Kinds of loads, as the metrics label them.
const (
	kindCPU        = "cpu"
	kindPendingAge = "pending_age"
	kindFlush      = "flush"
)

// controller decides on the factor. It is a pure function of what it is called with.
//
// A load is over its target above 1, and low if it would stay below 1 - headroom with
// the factor one step lower. In between nothing changes.
type controller struct {
	max float64 // the highest factor

	factor  float64   // at the last call; 0: there was none
	changed time.Time // when it was first seen
	// over and low are since when a load was over its target, or all were low; zero: that
	// is not so.
	over, low time.Time
	lowered   time.Time     // the newest step down; zero: none since the last one up
	patience  time.Duration // for how long loads must be low before a step down
}

func newController(limit float64) controller {
	return controller{max: limit, patience: sustained}
}

// step is what is to be done: the same factor, or the next one up or down, and the
// highest load.
type step struct {
	factor float64
	peak   peak
}

// peak is the highest load of all replicas, relative to its target.
type peak struct {
	load          float64
	kind, replica string
}

// clamp returns a factor that was decided as it is applied here: at least 1 and not above
// the limit, which another replica's options may not have.
func (c *controller) clamp(factor float64) float64 {
	if math.IsNaN(factor) {
		return 1
	}
	return max(1, min(factor, c.max))
}

// next takes in the factor that is applied at now, and the loads. now does not fall from
// call to call. What it returns is done or not: the next call says so by its factor.
func (c *controller) next(now time.Time, factor float64, replicas []agent.Replica) step {
	c.noteFactor(now, factor)
	p := highest(replicas)
	lower, higher := neighbours(factor, c.max)
	c.over = since(c.over, now, p.load > 1)
	c.low = since(c.low, now, p.load*factor/lower < 1-headroom)
	next := factor
	switch {
	case now.Sub(c.changed) < stepInterval:
	case !c.over.IsZero() && now.Sub(c.over) >= sustained:
		next = higher
	case !c.low.IsZero() && now.Sub(c.low) >= c.patience:
		next = lower
	}
	return step{next, p}
}

// noteFactor notes whether the factor changed since the last call.
func (c *controller) noteFactor(now time.Time, factor float64) {
	before := c.factor
	if factor == before {
		return
	}
	c.factor, c.changed = factor, now
	c.over, c.low = time.Time{}, time.Time{}
	switch {
	case factor < before:
		c.lowered = now
		return
	case c.lowered.IsZero(): // not the first step up since one down
		return
	case now.Sub(c.lowered) < c.patience+relapse:
		c.patience = min(2*c.patience, longestPatience)
	default:
		c.patience = sustained
	}
	c.lowered = time.Time{}
}

// since returns since when it is so; zero: it is not.
func since(before, now time.Time, so bool) time.Time {
	if !so {
		return time.Time{}
	}
	if before.IsZero() {
		return now
	}
	return before
}

// neighbours returns the next factors below and above one, or itself where there is none.
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

// highest returns the highest load.
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
