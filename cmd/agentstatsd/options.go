package main

import (
	"slices"

	"github.com/coder/serpent"

	"github.com/coder/agentstatsd/optiontable"
)

// The groups of options, in the order of the help and of docs/configuration.md.
var (
	groupPrometheus = serpent.Group{Name: "Prometheus", YAML: "prometheus", Description: "The endpoint that Prometheus scrapes."}
	groupGRPC       = serpent.Group{Name: "gRPC", YAML: "grpc", Description: "The listener that agents and coderd dial."}
	groupStorage    = serpent.Group{Name: "Storage", YAML: "storage", Description: "Where registrations, state and metadata are kept."}
	groupAgents     = serpent.Group{Name: "Agents", YAML: "agents", Description: "Settings and limits of agents."}
	groupPushes     = serpent.Group{Name: "Pushes", YAML: "pushes", Description: "What instances of coderd may push of their own families."}
	groupMetadata   = serpent.Group{Name: "Metadata", YAML: "metadata", Description: "How metadata reaches the database."}
	groupLogging    = serpent.Group{Name: "Logging", YAML: "logging", Description: "What the service says, and how."}
)

// options is the one table that flags, environment, YAML and docs/configuration.md come
// from. Names that Coder has too are Coder's.
func (c *config) options() serpent.OptionSet {
	options := slices.Concat(
		serpent.OptionSet{{
			Description: "A YAML file with any of these options. Flags and environment win over it.",
			Flag:        "config", FlagShorthand: "c", Env: "AGENTSTATSD_CONFIG_PATH",
			Value: serpent.StringOf(&c.configFile),
		}},
		c.prometheusOptions(),
		c.pageOptions(),
		c.grpcOptions(),
		c.storageOptions(),
		c.agentOptions(),
		c.intervalOptions(),
		c.pushOptions(),
		c.metadataOptions(),
		c.loggingOptions(),
	)
	optiontable.MarkReloadable(options, reloadable)
	for i := range options {
		// What serpent calls a variable that it cannot parse.
		options[i].Name = options[i].Env
	}
	return options
}

// Values that options of the tables have.
var (
	atLeast        = optiontable.AtLeast
	within         = optiontable.Within
	bytesAtLeast   = optiontable.BytesAtLeast
	positive       = optiontable.Positive
	notBelow       = optiontable.NotBelow
	durationWithin = optiontable.DurationWithin
	zeroOrNotBelow = optiontable.ZeroOrNotBelow
)
