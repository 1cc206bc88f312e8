package main

import (
	"cmp"
	"slices"
	"strings"
)

// check is one reason why the service may be not ready.
type check struct {
	name string
	// err returns nil or what is wrong, at once.
	err func() error
}

// readiness is the answer of /-/ready.
type readiness struct {
	Ready bool `json:"ready"`
	// Reasons why not, by the part that says so. What the database says is there once,
	// in words of ours: its own have names of users and servers.
	Reasons map[string]string `json:"reasons,omitempty"`
	// Warnings of what does not work, though all that readiness is about does.
	Warnings []string `json:"warnings,omitempty"`
}

// databasePart says why the database could not be used.
const databasePart = "database"

// ready runs the checks.
func ready(checks []check) readiness {
	r := readiness{Ready: true, Reasons: make(map[string]string)}
	var ofDatabase []string
	for _, c := range checks {
		err := c.err()
		if err == nil {
			continue
		}
		r.Ready = false
		text := err.Error()
		for _, cause := range causes(err) {
			text = strings.ReplaceAll(text, cause.Error(), "")
			ofDatabase = append(ofDatabase, cause.Reason())
		}
		r.Reasons[c.name] = cmp.Or(strings.Trim(text, ": \n"), databasePart)
	}
	if len(ofDatabase) > 0 {
		slices.Sort(ofDatabase)
		r.Reasons[databasePart] = strings.Join(slices.Compact(ofDatabase), "; ")
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
