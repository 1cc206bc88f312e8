package main

import (
	"github.com/coder/serpent"
)

// loggingOptions say what is logged.
func (c *config) loggingOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Format of the log on standard error.",
			Flag:        "log-format", Env: "AGENTSTATSD_LOG_FORMAT", YAML: "format",
			Default: "text", Value: serpent.EnumOf(&c.logFormat, "text", "json"), Group: &groupLogging,
		},
		{
			Description: "Least level that is logged.",
			Flag:        "log-level", Env: "AGENTSTATSD_LOG_LEVEL", YAML: "level",
			Default: "info", Value: serpent.EnumOf(&c.logLevel, "debug", "info", "warn", "error"), Group: &groupLogging,
		},
		{
			Description: "Lines a minute with the same text, a sixth of it with the same text about one peer, agent or the like, and ten times as many in all; " +
				"more are counted and left out. 0: no limit.",
			Flag: "log-max-per-minute", Env: "AGENTSTATSD_LOG_MAX_PER_MINUTE", YAML: "max_per_minute",
			Default: "60", Value: atLeast(&c.logMaxPerMinute, 0), Group: &groupLogging,
		},
	}
}
