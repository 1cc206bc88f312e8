package main

import (
	"github.com/coder/serpent"
)

// loggingOptions say what is logged.
func (c *config) loggingOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Name:        "Log Format",
			Description: "Form of the log on standard error.",
			Flag:        "log-format", Env: "AGENTSTATSD_LOG_FORMAT", YAML: "format",
			Default: "text", Value: serpent.EnumOf(&c.logFormat, "text", "json"), Group: &groupLogging,
		},
		{
			Name:        "Log Level",
			Description: "Least level that is logged.",
			Flag:        "log-level", Env: "AGENTSTATSD_LOG_LEVEL", YAML: "level",
			Default: "info", Value: serpent.EnumOf(&c.logLevel, "debug", "info", "warn", "error"), Group: &groupLogging,
		},
	}
}
