package main

import (
	"github.com/coder/serpent"
)

// metadataOptions say how metadata reaches the database.
func (c *config) metadataOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Time between two scheduled flushes of pending metadata.",
			Flag:        "metadata-flush-interval", Env: "AGENTSTATSD_METADATA_FLUSH_INTERVAL", YAML: "flush_interval",
			Default: "5s", Value: positive(&c.metadataFlushInterval), Group: &groupMetadata,
		},
		{
			Description: "Pending entries that start a flush at once, and entries that one flush writes: up to eight times as many while more than four times as many wait.",
			Flag:        "metadata-batch-size", Env: "AGENTSTATSD_METADATA_BATCH_SIZE", YAML: "batch_size",
			Default: "500", Value: within(&c.metadataBatchSize, 1, 10_000), Group: &groupMetadata,
		},
		{
			Description: "Entries that wait for the database, all agents together; new keys beyond are refused.",
			Flag:        "metadata-max-pending", Env: "AGENTSTATSD_METADATA_MAX_PENDING", YAML: "max_pending",
			Default: "500000", Value: atLeast(&c.metadataMaxPending, 1), Group: &groupMetadata,
		},
		{
			Description: "Keys of one agent with entries that wait for the database; new ones beyond are refused.",
			Flag:        "metadata-max-pending-per-agent", Env: "AGENTSTATSD_METADATA_MAX_PENDING_PER_AGENT", YAML: "max_pending_per_agent",
			Default: "1000", Value: atLeast(&c.metadataAgentShare, 1), Group: &groupMetadata,
		},
		{
			Description: "Keys of all agents of one owner of workspaces with entries that wait for the database; new ones beyond are refused. 0: a quarter of --metadata-max-pending.",
			Flag:        "metadata-max-pending-per-owner", Env: "AGENTSTATSD_METADATA_MAX_PENDING_PER_OWNER", YAML: "max_pending_per_owner",
			Default: "0", Value: atLeast(&c.metadataOwnerShare, 0), Group: &groupMetadata,
		},
		{
			Description: "Keys of an agent whose template declares none; more are refused.",
			Flag:        "metadata-max-keys", Env: "AGENTSTATSD_METADATA_MAX_KEYS", YAML: "max_keys",
			Default: "128", Value: atLeast(&c.metadataMaxKeys, 1), Group: &groupMetadata,
		},
		{
			Description: "Keys that the template of an agent may declare; registrations with more are refused.",
			Flag:        "metadata-max-declared-keys", Env: "AGENTSTATSD_METADATA_MAX_DECLARED_KEYS", YAML: "max_declared_keys",
			Default: "256", Value: atLeast(&c.metadataDeclaredKeys, 1), Group: &groupMetadata,
		},
		{
			Description: "Time between two reads of what is watched, which repair missed notifications.",
			Flag:        "metadata-reread-interval", Env: "AGENTSTATSD_METADATA_REREAD_INTERVAL", YAML: "reread_interval",
			Default: "30s", Value: positive(&c.metadataRereadEvery), Group: &groupMetadata,
		},
		{
			Description: "Time after which a value that is reported again unchanged is written again, with its newer time. 0: each time.",
			Flag:        "metadata-touch-interval", Env: "AGENTSTATSD_METADATA_TOUCH_INTERVAL", YAML: "touch_interval",
			Default: "1m", Value: notBelow(&c.metadataTouchInterval, 0), Group: &groupMetadata,
		},
	}
}
