package refusals

import (
	"cmp"
	"fmt"
)

// Options are the knobs of Refusals. A zero field takes its default.
type Options struct {
	// MaxAgents whose last refusals are kept; default 10,000. MaxBytes bounds what they
	// take; default 16 MiB.
	MaxAgents, MaxBytes int
	// MaxSums bounds the templates, the owners and the versions that have a sum; default
	// 1,000 of each.
	MaxSums int
	// MaxTemplateLabels bounds the templates with a label of their own in metrics;
	// default 20. The others are one.
	MaxTemplateLabels int
	// MaxLines a minute are logged; default 30, beside one that says how many agents were
	// left out.
	MaxLines int
}

func (o Options) withDefaults() Options {
	o.MaxAgents = cmp.Or(o.MaxAgents, 10_000)
	o.MaxBytes = cmp.Or(o.MaxBytes, 16<<20)
	o.MaxSums = cmp.Or(o.MaxSums, 1000)
	o.MaxTemplateLabels = cmp.Or(o.MaxTemplateLabels, 20)
	o.MaxLines = cmp.Or(o.MaxLines, 30)
	return o
}

func (o Options) validate() error {
	for _, c := range []struct {
		name  string
		value int
	}{
		{"max agents", o.MaxAgents},
		{"max bytes", o.MaxBytes},
		{"max sums", o.MaxSums},
		{"max template labels", o.MaxTemplateLabels},
		{"max lines", o.MaxLines},
	} {
		if c.value < 1 {
			return fmt.Errorf("%s: want at least 1, got %d", c.name, c.value)
		}
	}
	return nil
}
