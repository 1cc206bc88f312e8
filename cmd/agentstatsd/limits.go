package main

import (
	"fmt"

	"github.com/coder/agentstatsd/agentapi"
	"github.com/coder/agentstatsd/coderdapi"
)

// validateLimits checks the limits that must leave room for others.
func (c *config) validateLimits() []error {
	var errs []error
	ownerShare := flagValue{"--metadata-max-pending-per-owner", c.metadataOwnerShare}
	if c.metadataOwnerShare == 0 {
		ownerShare = flagValue{"a quarter of --metadata-max-pending", max(c.metadataMaxPending/4, 1)}
	}
	var (
		declared  = flagValue{"--metadata-max-declared-keys", c.metadataDeclaredKeys}
		undefined = flagValue{"--metadata-max-keys", c.metadataMaxKeys}
		share     = flagValue{"--metadata-max-pending-per-agent", c.metadataAgentShare}
		pending   = flagValue{"--metadata-max-pending", c.metadataMaxPending}
		keys      = flagValue{declared.name, c.metadataDeclaredKeys}
	)
	if c.metadataMaxKeys > c.metadataDeclaredKeys {
		keys = undefined
	}
	for _, l := range []struct {
		least flagValue
		of    string // why, if it is not the value itself
		value int64
		limit flagValue
	}{
		{declared, "", declared.value, share},
		{undefined, "", undefined.value, share},
		{keys, "", keys.value, ownerShare},
		{flagValue{"--metadata-batch-size", c.metadataBatchSize}, "", c.metadataBatchSize, pending},
		{flagValue{"--max-agent-message-bytes", c.maxAgentMessageBytes}, "", c.maxAgentMessageBytes, flagValue{"--max-message-bytes", c.maxMessageBytes}},
		{
			flagValue{"--max-message-bytes", c.maxMessageBytes}, "twice ", 2 * c.maxMessageBytes,
			flagValue{"--max-receiving-bytes", c.maxReceivingBytes},
		},
		{flagValue{"--max-push-bytes", c.maxPushBytes}, "", c.maxPushBytes, flagValue{"--max-pushes-bytes", c.maxPushesBytes}},
		{flagValue{"--max-watch-bytes", c.maxWatchBytes}, "", c.maxWatchBytes, flagValue{"--max-watches-bytes", c.maxWatchesBytes}},
		{
			flagValue{"--max-message-bytes", c.maxMessageBytes}, "six times ", coderdapi.ReadMessages * c.maxMessageBytes,
			flagValue{"--max-watches-bytes", c.maxWatchesBytes},
		},
		{
			keys, fmt.Sprintf("%d bytes for each of ", agentapi.MaxValueBytes), agentapi.MaxValueBytes * keys.value,
			flagValue{"half of --max-watch-bytes", c.maxWatchBytes / 2},
		},
	} {
		if l.limit.value < l.value {
			errs = append(errs, fmt.Errorf("%s (%d) is below %s%s (%d)", l.limit.name, l.limit.value, l.of, l.least.name, l.least.value))
		}
	}
	return errs
}

// flagValue is what a flag says.
type flagValue struct {
	name  string
	value int64
}
