package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/coder/serpent"
)

// The groups of options, in the order of the help and of the README.
var (
	groupPrometheus = serpent.Group{Name: "Prometheus", YAML: "prometheus", Description: "The endpoint that Prometheus scrapes."}
	groupGRPC       = serpent.Group{Name: "gRPC", YAML: "grpc", Description: "The listener that agents and coderd dial."}
	groupStorage    = serpent.Group{Name: "Storage", YAML: "storage", Description: "Where registrations, state and metadata are kept."}
	groupAgents     = serpent.Group{Name: "Agents", YAML: "agents", Description: "Settings and limits of agents."}
	groupPushes     = serpent.Group{Name: "Pushes", YAML: "pushes", Description: "What instances of coderd may push of their own families."}
	groupMetadata   = serpent.Group{Name: "Metadata", YAML: "metadata", Description: "How metadata reaches the database."}
	groupLogging    = serpent.Group{Name: "Logging", YAML: "logging", Description: "What the service says, and how."}
)

// options is the one table that flags, environment, YAML and the README's
// configuration table come from. Names that Coder has too are Coder's.
func (c *config) options() serpent.OptionSet {
	options := slices.Concat(
		serpent.OptionSet{{
			Description: "A YAML file with any of these options. Flags and environment win over it.",
			Flag:        "config", FlagShorthand: "c", Env: "AGENTSTATSD_CONFIG_PATH",
			Value: serpent.StringOf(&c.configFile),
		}},
		c.prometheusOptions(),
		c.grpcOptions(),
		c.storageOptions(),
		c.agentOptions(),
		c.intervalOptions(),
		c.pushOptions(),
		c.metadataOptions(),
		c.loggingOptions(),
	)
	for i := range options {
		// What serpent calls a variable that it cannot parse.
		options[i].Name = options[i].Env
	}
	return options
}

// No option is larger, so that nothing which is made of one overflows.
const (
	largestInteger  = 1 << 40
	longestDuration = 10 * 365 * 24 * time.Hour
)

// atLeast is an integer option that refuses values below least.
func atLeast(v *int64, least int64) *serpent.Validator[*serpent.Int64] {
	return within(v, least, largestInteger)
}

// within is an integer option that refuses values below least and above most.
func within(v *int64, least, most int64) *serpent.Validator[*serpent.Int64] {
	return serpent.Validate(serpent.Int64Of(v), func(v *serpent.Int64) error {
		switch n := int64(*v); {
		case n < least:
			return fmt.Errorf("%d is below the least value %d", n, least)
		case n > most:
			return fmt.Errorf("%d is above the largest value %d", n, most)
		}
		return nil
	})
}

// positive is a duration option that refuses 0 and below.
func positive(v *time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d <= 0 {
			return fmt.Errorf("%s is not longer than 0s", d)
		}
		return nil
	})
}

// notBelow is a duration option that refuses values below least.
func notBelow(v *time.Duration, least time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d < least {
			return fmt.Errorf("%s is below the least value %s", d, least)
		}
		return nil
	})
}

// durationWithin is a duration option that refuses values below least and above most.
func durationWithin(v *time.Duration, least, most time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		switch {
		case d < least:
			return fmt.Errorf("%s is below the least value %s", d, least)
		case d > most:
			return fmt.Errorf("%s is above the largest value %s", d, most)
		}
		return nil
	})
}

// zeroOrNotBelow is a duration option that refuses values below least but 0.
func zeroOrNotBelow(v *time.Duration, least time.Duration) *serpent.Validator[*serpent.Duration] {
	return duration(v, func(d time.Duration) error {
		if d != 0 && d < least {
			return fmt.Errorf("%s is neither 0s nor at least %s", d, least)
		}
		return nil
	})
}

// duration is a duration option with a check.
func duration(v *time.Duration, check func(time.Duration) error) *serpent.Validator[*serpent.Duration] {
	return serpent.Validate(serpent.DurationOf(v), func(v *serpent.Duration) error {
		d := time.Duration(*v)
		if d > longestDuration {
			return fmt.Errorf("%s is above the largest value %s", d, longestDuration)
		}
		return check(d)
	})
}
