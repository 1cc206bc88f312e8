// Package readiness finds out whether a process is ready, why not, and says so in metrics.
package readiness

import (
	"cmp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/internal/ownmetrics"
)

// Check is one reason why a process may be not ready.
type Check struct {
	// Name is that of the part which it is about.
	Name string
	// Err returns nil or what is wrong, at once.
	Err func() error
}

// Answer is the answer of /-/ready.
type Answer struct {
	Ready bool `json:"ready"`
	// Reasons why not, by the part that says so. What the database says is there once,
	// in words of ours: its own have names of users and servers.
	Reasons map[string]string `json:"reasons,omitempty"`
	// Warnings of what does not work, though all that readiness is about does.
	Warnings []string `json:"warnings,omitempty"`
}

// DatabasePart is the part of the reasons that says why the database could not be used.
const DatabasePart = "database"

// Of runs the checks.
func Of(checks []Check) Answer {
	r := Answer{Ready: true, Reasons: make(map[string]string)}
	var ofDatabase []string
	for _, c := range checks {
		err := c.Err()
		if err == nil {
			continue
		}
		r.Ready = false
		text := err.Error()
		for _, cause := range causes(err) {
			text = strings.ReplaceAll(text, cause.Error(), "")
			ofDatabase = append(ofDatabase, cause.Reason())
		}
		r.Reasons[c.Name] = cmp.Or(strings.Trim(text, ": \n"), DatabasePart)
	}
	if len(ofDatabase) > 0 {
		slices.Sort(ofDatabase)
		r.Reasons[DatabasePart] = strings.Join(slices.Compact(ofDatabase), "; ")
	}
	return r
}

// databaseError is an error whose text is not for everybody. store.Error is one.
type databaseError interface {
	error
	Reason() string
}

// causes returns the errors of the database that err wraps.
func causes(err error) []databaseError {
	//nolint:errorlint // The whole tree is walked.
	switch e := err.(type) {
	case databaseError:
		return []databaseError{e}
	case interface{ Unwrap() error }:
		return causes(e.Unwrap())
	case interface{ Unwrap() []error }:
		var all []databaseError
		for _, part := range e.Unwrap() {
			all = append(all, causes(part)...)
		}
		return all
	}
	return nil
}

// Register registers whether each part that readiness depends on works.
func Register(reg prometheus.Registerer, checks []Check) error {
	for _, c := range checks {
		ready := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "agentstatsd_component_ready", Help: "1 while a part has no reason for /-/ready to be not ready, otherwise 0. draining is 0 once the service stops, and while an operator has it drain.",
			ConstLabels: prometheus.Labels{"component": c.Name},
		}, func() float64 {
			if c.Err() != nil {
				return 0
			}
			return 1
		})
		if err := ownmetrics.Register(reg, ready); err != nil {
			return err
		}
	}
	return nil
}
