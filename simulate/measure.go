package simulate

import (
	"maps"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/agentstatsd/client"
)

// latencyGrowth is the ratio of one bucket's bound to the one before: quantiles
// are right within 10 %.
const latencyGrowth = 1.1

// latencies count durations from 1 us to 10 min in buckets.
type latencies struct {
	buckets [220]atomic.Int64
}

// add counts a duration above 0.
func (l *latencies) add(d time.Duration) {
	if d <= 0 {
		return
	}
	i := math.Log(float64(d)/float64(time.Microsecond)) / math.Log(latencyGrowth)
	l.buckets[min(max(int(math.Ceil(i)), 0), len(l.buckets)-1)].Add(1)
}

// quantile returns a bound that the given part of all durations is within; 0:
// there are none.
func (l *latencies) quantile(q float64) time.Duration {
	var total int64
	for i := range l.buckets {
		total += l.buckets[i].Load()
	}
	rank := int64(math.Ceil(q * float64(total)))
	for i := range l.buckets {
		rank -= l.buckets[i].Load()
		if total > 0 && rank <= 0 {
			return time.Duration(float64(time.Microsecond) * math.Pow(latencyGrowth, float64(i)))
		}
	}
	return 0
}

// counts count by name.
type counts struct {
	mu sync.Mutex
	n  map[string]int64
}

// add counts n and reports whether the name is new.
func (c *counts) add(name string, n int64) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]int64)
	}
	_, known := c.n[name]
	c.n[name] += n
	return !known
}

func (c *counts) snapshot() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// changes are when the newest values of an agent were handed over, by their number,
// which rises by one from 1.
type changes struct {
	mu     sync.Mutex
	at     [64]time.Time
	newest int64
}

func (c *changes) add(number int64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest = number
	c.at[number%int64(len(c.at))] = at
}

// durable adds the time that values took to the latencies. One that is too old to be
// remembered counts as the oldest that is.
func (c *changes) durable(entries []client.Metadata, now time.Time, l *latencies) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range entries {
		_, text, _ := strings.Cut(m.Value+m.Error, "#")
		number, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			continue
		}
		number = max(number, c.newest-int64(len(c.at))+1)
		l.add(now.Sub(c.at[number%int64(len(c.at))]))
	}
}
