package console

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"time"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Limits that are shown first are the fullest; a limit is nearly full from here on.
const (
	fullestLimits = 8
	nearlyFull    = 90 // percent
	// certificateDays before its end a certificate is a problem.
	certificateDays = 14
)

// overview answers whether the service is well.
type overview struct {
	Own      *agentstatsv1.ReplicaStatus
	Replicas []*agentstatsv1.ReplicaStatus
	Problems []problem
	Fullest  []*agentstatsv1.Limit
	// Registered is of all, the others are sums over replicas that live.
	Registered, Connected, Relayed, Series float64
	History                                history
}

// Faults reports whether there is more than warnings.
func (o *overview) Faults() bool {
	return slices.ContainsFunc(o.Problems, func(p problem) bool { return !p.Warning })
}

// problem is what is not as it should be.
type problem struct {
	// Replica is the name of the one that it is of; empty: it is alone.
	Replica, Text string
	// Warning is true if the service does its work all the same.
	Warning bool
}

func (c *Console) overview(ctx context.Context, _ *http.Request, _ url.Values) (any, error) {
	resp, err := c.api.GetStatus(ctx, &agentstatsv1.GetStatusRequest{})
	if err != nil {
		return nil, err
	}
	o := &overview{Own: new(agentstatsv1.ReplicaStatus), Replicas: resp.GetReplicas(), History: c.history(ctx)}
	if len(o.Replicas) > 0 {
		o.Own = o.Replicas[0]
	}
	o.Registered = o.Own.GetRegistered()
	for _, r := range o.Replicas {
		if r.GetAlive() {
			o.Connected += r.GetConnected()
			o.Relayed += r.GetRelayed()
			o.Series += r.GetSeries()
		}
		o.Problems = append(o.Problems, problemsOf(r, len(o.Replicas) > 1)...)
	}
	slices.SortStableFunc(o.Problems, func(a, b problem) int {
		return cmp.Compare(boolInt(a.Warning), boolInt(b.Warning))
	})
	o.Fullest = byShare(o.Own.GetLimits())
	o.Fullest = o.Fullest[:min(len(o.Fullest), fullestLimits)]
	return o, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// problemsOf returns what is wrong with a replica.
func problemsOf(r *agentstatsv1.ReplicaStatus, named bool) (problems []problem) {
	add := func(warning bool, format string, args ...any) {
		p := problem{Text: fmt.Sprintf(format, args...), Warning: warning}
		if named {
			p.Replica = cmp.Or(r.GetName(), r.GetId())
		}
		problems = append(problems, p)
	}
	if !r.GetAlive() {
		return []problem{{Text: fmt.Sprintf("%s is gone: it last said %s ago how it is", cmp.Or(r.GetName(), r.GetId()), duration(r.GetAgeSeconds()))}}
	}
	for _, component := range r.GetComponents() {
		if !component.GetReady() {
			add(false, "%s: %s", component.GetName(), cmp.Or(component.GetReason(), "not ready"))
		}
	}
	for _, warning := range r.GetWarnings() {
		add(true, "%s", warning)
	}
	if r.GetDraining() && r.GetReady() {
		add(true, "it drains, and takes no new agents")
	}
	for _, l := range r.GetLimits() {
		if of := share(l.Used, l.GetLimit()); of >= nearlyFull {
			add(true, "%s: %s of %s are used", words(l.GetName()), limited(l.GetName(), l.Used), limited(l.GetName(), l.GetLimit()))
		}
	}
	if of := share(r.GetResidentBytes(), r.GetMemoryLimitBytes()); of >= nearlyFull {
		add(true, "memory: %s of %s are used", size(r.GetResidentBytes()), size(r.GetMemoryLimitBytes()))
	}
	now := time.Now()
	for _, certificate := range r.GetCertificates() {
		if !isSet(certificate.GetNotAfter()) {
			continue
		}
		switch left := certificate.GetNotAfter().AsTime().Sub(now); {
		case left <= 0:
			add(false, "%s has expired", certificateName(certificate))
		case left < certificateDays*24*time.Hour:
			add(true, "%s ends in %s", certificateName(certificate), duration(left.Seconds()))
		}
	}
	return problems
}

func certificateName(c *agentstatsv1.Certificate) string {
	if c.GetKind() == "client_ca" {
		return "the authority of clients' certificates of the listener " + c.GetListener()
	}
	return "the certificate of the listener " + c.GetListener()
}

// byShare returns the limits of which something is used, the fullest first, without that of
// pages: one of them is this one.
func byShare(limits []*agentstatsv1.Limit) []*agentstatsv1.Limit {
	used := slices.DeleteFunc(slices.Clone(limits), func(l *agentstatsv1.Limit) bool {
		return l.GetName() == "concurrent_pages" || math.IsNaN(share(l.Used, l.GetLimit()))
	})
	slices.SortStableFunc(used, func(a, b *agentstatsv1.Limit) int {
		return cmp.Compare(share(b.Used, b.GetLimit()), share(a.Used, a.GetLimit()))
	})
	return used
}

// history is the last hour, as far as it is known.
type history struct {
	Charts []chart
	// Error says why there are none.
	Error string
}

// history returns the charts of those names, in this order; without names all. A page
// without them is better than none, so an error is part of it.
func (c *Console) history(ctx context.Context, names ...string) history {
	resp, err := c.api.GetHistory(ctx, &agentstatsv1.GetHistoryRequest{})
	if err != nil {
		_, text := explain(err)
		return history{Error: text}
	}
	drawn := drawCharts(resp)
	if len(names) == 0 {
		return history{Charts: drawn}
	}
	var some []chart
	for _, name := range names {
		for _, c := range drawn {
			if c.ID == chartID(name) {
				some = append(some, c)
			}
		}
	}
	return history{Charts: some}
}
