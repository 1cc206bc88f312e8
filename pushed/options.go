package pushed

import (
	"cmp"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
)

// Options are the knobs of a Families. A zero field takes its default.
type Options struct {
	// SeriesTTL is how long gauges are served after the newest snapshot of
	// their instance; longer if three of its intervals are. Default 2 min.
	SeriesTTL time.Duration
	// MaxFamilies of one snapshot; more are refused. Default 2,000.
	MaxFamilies int
	// MaxSeries is how many series one instance may have, each bucket and each
	// KiB of labels counted as one; more are refused. Counts that it does not push
	// any more go to the totals when there is no room for them. Default 200,000.
	MaxSeries int
	// MaxTotalSeries bounds the series of all instances that are alive. It also
	// bounds all series, with those of gone instances and the totals, unless the
	// totals of live series alone exceed it. Default 2,000,000.
	MaxTotalSeries int
	// MaxInstances bounds the instances with a row of their own. For one more the
	// oldest gone ones are merged into the totals and forgotten. If none is gone it
	// is refused. Default 256.
	MaxInstances int
	// MaxRowBytes bounds what is stored of one instance, compressed; series beyond
	// are refused. Default 64 MiB.
	MaxRowBytes int
	// MaxLabelValueBytes of one label, MaxLabelsBytes of all names and values of a
	// series; series beyond are refused. Defaults 32 KiB, as parameters of templates have at
	// most, which a family has as a label, and 40 KiB.
	MaxLabelValueBytes, MaxLabelsBytes int
	// FoldAfter the newest snapshot of an instance its counts become part of
	// the totals; default 24 h.
	FoldAfter time.Duration
	// ForgetAfter the newest snapshot of an instance its last values are
	// forgotten too; until then it can come back without counting anything
	// twice. Default 7 days.
	ForgetAfter time.Duration
	// Merge is how families merge whose documented or guessed way is wrong, by
	// name. Of counters, histograms and summaries all but MergeSum mean that each
	// instance has the whole: the largest is served.
	Merge map[string]metrics.Merge
	// OwnFor is how long this package still owns a name after its family was last
	// served; default 5 min, the lookback of Prometheus.
	OwnFor time.Duration
	// StoreTimeout bounds one call of the store; default 10 s.
	StoreTimeout time.Duration
	// Lease decides whether this replica serves and folds. nil: it is alone, and
	// does.
	Lease Lease
	// Notifier notifies replicas of one another's pushes. nil: they read them
	// within FollowInterval.
	Notifier Notifier
	// FollowInterval is the time between two reads of what other replicas stored,
	// if there is a lease; default 5 s.
	FollowInterval time.Duration
	// Random draws the waits after reads that failed, within [0, 1); nil: rand.Float64.
	Random func() float64
}

func (o Options) withDefaults() Options {
	o.SeriesTTL = cmp.Or(o.SeriesTTL, 2*time.Minute)
	o.MaxFamilies = cmp.Or(o.MaxFamilies, 2000)
	o.MaxSeries = cmp.Or(o.MaxSeries, 200_000)
	o.MaxTotalSeries = cmp.Or(o.MaxTotalSeries, 2_000_000)
	o.MaxInstances = cmp.Or(o.MaxInstances, 256)
	o.MaxRowBytes = cmp.Or(o.MaxRowBytes, 64<<20)
	o.MaxLabelValueBytes = cmp.Or(o.MaxLabelValueBytes, 32<<10)
	o.MaxLabelsBytes = cmp.Or(o.MaxLabelsBytes, 40<<10)
	o.FoldAfter = cmp.Or(o.FoldAfter, 24*time.Hour)
	o.ForgetAfter = cmp.Or(o.ForgetAfter, 7*24*time.Hour)
	o.OwnFor = cmp.Or(o.OwnFor, 5*time.Minute)
	o.StoreTimeout = cmp.Or(o.StoreTimeout, 10*time.Second)
	o.FollowInterval = cmp.Or(o.FollowInterval, 5*time.Second)
	return o
}

func (o Options) validate() error {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"max families", o.MaxFamilies},
		{"max series", o.MaxSeries},
		{"max total series", o.MaxTotalSeries},
		{"max instances", o.MaxInstances},
		{"max row bytes", o.MaxRowBytes},
		{"max label value bytes", o.MaxLabelValueBytes},
		{"max labels bytes", o.MaxLabelsBytes},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %d", n.name, n.value)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"series TTL", o.SeriesTTL},
		{"fold after", o.FoldAfter},
		{"forget after", o.ForgetAfter},
		{"own for", o.OwnFor},
		{"store timeout", o.StoreTimeout},
		{"follow interval", o.FollowInterval},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s: want at least 0, got %v", d.name, d.value)
		}
	}
	return nil
}

// limits returns the options that bound a snapshot.
func (o Options) limits() family.Limits {
	return family.Limits{
		MaxFamilies: o.MaxFamilies, MaxLabelValueBytes: o.MaxLabelValueBytes, MaxLabelsBytes: o.MaxLabelsBytes,
		MaxSeries: o.MaxSeries, MaxTotalSeries: o.MaxTotalSeries, MaxRowBytes: o.MaxRowBytes,
	}
}
