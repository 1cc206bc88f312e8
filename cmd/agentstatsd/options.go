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
	groupAgents     = serpent.Group{Name: "Agents", YAML: "agents", Description: "What agents are told and allowed."}
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

// atLeast is an integer option that refuses values below least.
func atLeast(v *int64, least int64) *serpent.Validator[*serpent.Int64] {
	return serpent.Validate(serpent.Int64Of(v), func(v *serpent.Int64) error {
		if int64(*v) < least {
			return fmt.Errorf("%d is below the least value %d", int64(*v), least)
		}
		return nil
	})
}

// positive is a duration option that refuses 0 and below.
func positive(v *time.Duration) *serpent.Validator[*serpent.Duration] {
	return serpent.Validate(serpent.DurationOf(v), func(v *serpent.Duration) error {
		if *v <= 0 {
			return fmt.Errorf("%s is not longer than 0s", time.Duration(*v))
		}
		return nil
	})
}

// notBelow is a duration option that refuses values below least.
func notBelow(v *time.Duration, least time.Duration) *serpent.Validator[*serpent.Duration] {
	return serpent.Validate(serpent.DurationOf(v), func(v *serpent.Duration) error {
		if time.Duration(*v) < least {
			return fmt.Errorf("%s is below the least value %s", time.Duration(*v), least)
		}
		return nil
	})
}
