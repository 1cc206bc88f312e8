package metrics

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Family is one documented family: the contract with whoever scrapes.
type Family struct {
	Name string
	Type Type
	Help string
	// Labels are the names of the family's labels, sorted. They bind the
	// families that the service computes; forwarded and pushed ones may carry
	// others.
	Labels []string
	// Buckets are the upper bounds of a histogram's buckets, +Inf left out.
	Buckets []float64
	// Native is nil, or how the histogram is native as well.
	Native *NativeHistogram
	// Owner is who may give the family values.
	Owner Owner
	// Merge is how values of several coderd instances become one: of the
	// families that coderd owns only.
	Merge Merge
	// Group is how values combine when the identity labels are shortened.
	Group Grouping
	// Source is where the value comes from, in whole sentences.
	Source string
}

// NativeHistogram are the bounds within which a native histogram works.
type NativeHistogram struct {
	// BucketFactor is how much wider than the one before a bucket may be.
	BucketFactor float64
	// MaxBuckets is how many buckets there may be. Where one more is needed the
	// histogram starts anew, or, if it did so less than MinReset ago, makes its
	// buckets wider.
	MaxBuckets uint32
	MinReset   time.Duration
}

// fineHistogram is what Coder documents of its native histograms.
var fineHistogram = &NativeHistogram{BucketFactor: 1.1, MaxBuckets: 100, MinReset: time.Hour}

// HistogramOpts are the options to register the family with: name, help and
// buckets, classic and native. The family must be a histogram.
func (f *Family) HistogramOpts() prometheus.HistogramOpts {
	opts := prometheus.HistogramOpts{Name: f.Name, Help: f.Help, Buckets: f.Buckets}
	if n := f.Native; n != nil {
		opts.NativeHistogramBucketFactor = n.BucketFactor
		opts.NativeHistogramMaxBucketNumber = n.MaxBuckets
		opts.NativeHistogramMinResetDuration = n.MinReset
	}
	return opts
}

// Owner is who gives a family its values.
type Owner string

// The owners of families.
const (
	// OwnerService computes the family: nobody may send it.
	OwnerService Owner = "service"
	// OwnerAgents forward the family.
	OwnerAgents Owner = "agents"
	// OwnerCoderd pushes the family, from each of its instances.
	OwnerCoderd Owner = "coderd"
)

// Grouping is how the values of several agents become one.
type Grouping string

// The ways of grouping.
const (
	// GroupNone is for families without identity labels.
	GroupNone Grouping = ""
	// GroupSum adds the current values.
	GroupSum Grouping = "sum"
	// GroupMax takes the largest current value.
	GroupMax Grouping = "max"
	// GroupWeightedMean weighs each agent by its connection count.
	GroupWeightedMean Grouping = "mean weighted by connection_count"
	// GroupIncrements adds what each counter grew by, so that the sum does not
	// fall when an agent leaves.
	GroupIncrements Grouping = "sum of increments"
)

// Documented returns the family called name; false if none is documented. What
// it points to is shared and must not be changed.
func Documented(name string) (*Family, bool) {
	i, ok := slices.BinarySearchFunc(catalogue, name, func(f Family, name string) int {
		return strings.Compare(f.Name, name)
	})
	if !ok {
		return nil, false
	}
	return &catalogue[i], true
}

// Catalogue returns a copy of all documented families, sorted by name.
func Catalogue() []Family {
	return slices.Clone(catalogue)
}

// catalogue is sorted by name. Help texts are served as they stand in it.
var catalogue = sorted(slices.Concat(agentFamilies, metadataFamilies, coderdFamilies, runtimeFamilies))

func sorted(families []Family) []Family {
	slices.SortFunc(families, func(f, g Family) int { return strings.Compare(f.Name, g.Name) })
	return families
}
