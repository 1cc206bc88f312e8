package operator

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// nearlyFull is the part of a limit above which its use is named.
const nearlyFull = 0.9

func statusCommand() *serpent.Command {
	c := &connection{}
	return &serpent.Command{
		Use:   "status",
		Short: "Show how all replicas are.",
		Long: "Each replica answers for itself. Of one that is not reached the others say how it was last, and when.\n\n" +
			"  agentstatsd status --address stats.example.com" + exitCodes,
		Options:    c.options(),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			resp := &agentstatsv1.GetStatusResponse{Replicas: a.statuses()}
			if len(resp.Replicas) == 0 {
				return coded(exitNotAsked, "the service is of an older version, which does not say how it is")
			}
			if c.json {
				err = a.printMessage(inv.Stdout, resp)
			} else {
				err = print(inv.Stdout, statusText(resp.GetReplicas(), time.Now()))
			}
			if err != nil {
				return err
			}
			return a.partial(false)
		},
	}
}

// statuses returns how all replicas are, in the order of their names: what each says of
// itself, else the newest that another one knows.
func (a *asked) statuses() []*agentstatsv1.ReplicaStatus {
	var all []*agentstatsv1.ReplicaStatus
	for _, r := range a.reached {
		if r.self != nil {
			all = append(all, r.self)
		}
	}
	for _, r := range a.reached {
		for _, o := range r.others {
			switch i := slices.IndexFunc(all, func(s *agentstatsv1.ReplicaStatus) bool { return isSame(s, o) }); {
			case i < 0:
				all = append(all, o)
			case o.GetAgeSeconds() < all[i].GetAgeSeconds():
				all[i] = o
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *agentstatsv1.ReplicaStatus) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return all
}

// statusText returns how replicas are, for people.
func statusText(replicas []*agentstatsv1.ReplicaStatus, now time.Time) string {
	t := newTable("REPLICA", "STATE", "VERSION", "UP", "AGENTS", "CONNECTED", "SERIES", "MEMORY", "CORES", "PENDING", "SCRAPED", "AS OF")
	var b strings.Builder
	for _, r := range replicas {
		t.row(replicaName(r), stateOf(r), r.GetVersion(), upOf(r, now), number(r.GetRegistered()), number(r.GetConnected()),
			number(r.GetSeries()), memoryOf(r), fmt.Sprintf("%.2f", r.GetCores()), number(r.GetDurability().GetPending()),
			cmp.Or(ago(now, r.GetScrapedAt()), "never"), asOf(r))
		for _, problem := range problemsOf(r, now) {
			fmt.Fprintf(&b, "%s: %s\n", shown(replicaName(r)), shown(problem))
		}
	}
	if b.Len() == 0 {
		return t.String()
	}
	return t.String() + "\n" + b.String()
}

// replicaName is the name of a replica for people.
func replicaName(r *agentstatsv1.ReplicaStatus) string { return cmp.Or(r.GetName(), r.GetId(), "-") }

func stateOf(r *agentstatsv1.ReplicaStatus) string {
	state := "not ready"
	switch {
	case !r.GetAlive():
		state = "gone"
	case r.GetDraining():
		state = "draining"
	case r.GetReady():
		state = "ready"
	}
	if r.GetLeads() {
		state += ", leads"
	}
	return state
}

func upOf(r *agentstatsv1.ReplicaStatus, now time.Time) string {
	if !r.GetStartedAt().IsValid() || !r.GetAlive() {
		return ""
	}
	return span(now.Sub(r.GetStartedAt().AsTime()))
}

func memoryOf(r *agentstatsv1.ReplicaStatus) string {
	text := size(r.GetResidentBytes())
	if limit := r.GetMemoryLimitBytes(); limit > 0 {
		text += " of " + size(limit)
	}
	return text
}

func asOf(r *agentstatsv1.ReplicaStatus) string {
	if age := r.GetAgeSeconds(); age > 0 {
		return seconds(age) + " ago"
	}
	return "now"
}

// problemsOf returns what is not well at a replica.
func problemsOf(r *agentstatsv1.ReplicaStatus, now time.Time) []string {
	var all []string
	for _, c := range r.GetComponents() {
		if !c.GetReady() {
			all = append(all, c.GetName()+" is not ready: "+c.GetReason())
		}
	}
	all = append(all, r.GetWarnings()...)
	for _, l := range r.GetLimits() {
		if l.Used != nil && l.GetLimit() > 0 && l.GetUsed() > nearlyFull*l.GetLimit() {
			all = append(all, fmt.Sprintf("%s: %s of %s are used, %.0f %%", l.GetName(), number(l.GetUsed()), number(l.GetLimit()), 100*l.GetUsed()/l.GetLimit()))
		}
	}
	for _, c := range r.GetCertificates() {
		if left := c.GetNotAfter().AsTime().Sub(now); left <= 0 {
			all = append(all, fmt.Sprintf("the certificate of %s has ended %s ago", c.GetListener(), span(-left)))
		}
	}
	return all
}
