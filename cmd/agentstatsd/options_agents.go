package main

import (
	"time"

	"github.com/coder/serpent"
)

// agentOptions are the settings and limits of agents.
func (c *config) agentOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Time between two reports of an agent, which agents get in their settings.",
			Flag:        "report-interval", Env: "AGENTSTATSD_REPORT_INTERVAL", YAML: "report_interval",
			Default: "30s", Value: notBelow(&c.reportInterval, time.Second), Group: &groupAgents,
		},
		{
			Description: "Time after which an agent is asked to reconnect, with jitter, so that agents spread over replicas, at least 10s. 0: never.",
			Flag:        "session-age", Env: "AGENTSTATSD_SESSION_AGE", YAML: "session_age",
			Default: "1h", Value: zeroOrNotBelow(&c.sessionAge, 10*time.Second), Group: &groupAgents,
		},
		{
			Description: "Agents that can be registered; more are refused.",
			Flag:        "max-agents", Env: "AGENTSTATSD_MAX_AGENTS", YAML: "max_agents",
			Default: "200000", Value: atLeast(&c.maxAgents, 1), Group: &groupAgents,
		},
		{
			Description: "Bytes in memory of the registrations of all agents and workspaces; registrations beyond are refused.",
			Flag:        "max-registrations-bytes", Env: "AGENTSTATSD_MAX_REGISTRATIONS_BYTES", YAML: "max_registrations_bytes",
			Default: "512MiB", Value: bytesAtLeast(&c.maxRegistrationsBytes, 1<<20), Group: &groupAgents,
		},
		{
			Description: "Largest registration of an agent, in bytes, encoded.",
			Flag:        "max-registration-bytes", Env: "AGENTSTATSD_MAX_REGISTRATION_BYTES", YAML: "max_registration_bytes",
			Default: "64KiB", Value: bytesAtLeast(&c.maxRegistrationBytes, 1024), Group: &groupAgents,
		},
		{
			Description: "Bytes in memory of all registrations and syncs of coderd under way together; more are refused until there is room. A sync takes about 1 KB for each agent.",
			Flag:        "max-sync-bytes", Env: "AGENTSTATSD_MAX_SYNC_BYTES", YAML: "max_sync_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxSyncBytes, 1<<20), Group: &groupAgents,
		},
		{
			Description: "Syncs of coderd at once; more are refused.",
			Flag:        "max-syncs", Env: "AGENTSTATSD_MAX_SYNCS", YAML: "max_syncs",
			Default: "4", Value: atLeast(&c.maxSyncs, 1), Group: &groupAgents,
		},
		{
			Description: "Time that a sync may take.",
			Flag:        "sync-timeout", Env: "AGENTSTATSD_SYNC_TIMEOUT", YAML: "sync_timeout",
			Default: "5m", Value: positive(&c.syncTimeout), Group: &groupAgents,
		},
		{
			Description: "Largest request of an agent, in bytes.",
			Flag:        "max-agent-message-bytes", Env: "AGENTSTATSD_MAX_AGENT_MESSAGE_BYTES", YAML: "max_agent_message_bytes",
			Default: "1MiB", Value: bytesAtLeast(&c.maxAgentMessageBytes, 64<<10), Group: &groupAgents,
		},
		{
			Description: "Streams that an agent may have open at once; more are refused. As many may have ended and wait to be read; beyond that its connection is closed.",
			Flag:        "max-streams-per-agent", Env: "AGENTSTATSD_MAX_STREAMS_PER_AGENT", YAML: "max_streams_per_agent",
			Default: "8", Value: atLeast(&c.maxStreamsPerAgent, 2), Group: &groupAgents,
		},
		{
			Description: "Streams of coderd that relay for agents at once; more are refused.",
			Flag:        "max-relay-streams", Env: "AGENTSTATSD_MAX_RELAY_STREAMS", YAML: "max_relay_streams",
			Default: "64", Value: atLeast(&c.maxRelayStreams, 1), Group: &groupAgents,
		},
		{
			Description: "Agents' sessions on one of them at once; more are refused.",
			Flag:        "max-relayed-sessions", Env: "AGENTSTATSD_MAX_RELAYED_SESSIONS", YAML: "max_relayed_sessions",
			Default: "2000", Value: atLeast(&c.maxRelayedSessions, 1), Group: &groupAgents,
		},
		{
			Description: "Time without a message after which an agent's stream is closed, unless coderd relays it. 0: three times --report-interval, as lengthened by --adaptive-intervals at most.",
			Flag:        "agent-idle-timeout", Env: "AGENTSTATSD_AGENT_IDLE_TIMEOUT", YAML: "idle_timeout",
			Default: "0s", Value: notBelow(&c.agentIdleTimeout, 0), Group: &groupAgents,
		},
		{
			Description: "Time that an ack waits for something else to be sent with it, which agents get in their settings, from 1ms to 1m. What is to be stored is acked when it is.",
			Flag:        "ack-delay", Env: "AGENTSTATSD_ACK_DELAY", YAML: "ack_delay",
			Default: "5s", Value: durationWithin(&c.ackDelay, time.Millisecond, time.Minute), Group: &groupAgents,
		},
		{
			Description: "Time for which the stream of an agent that said goodbye waits for its last ack.",
			Flag:        "agent-goodbye-timeout", Env: "AGENTSTATSD_AGENT_GOODBYE_TIMEOUT", YAML: "goodbye_timeout",
			Default: "15s", Value: positive(&c.agentGoodbyeTimeout), Group: &groupAgents,
		},
		{
			Description: "Messages that an agent may send each second for ever; faster ones wait, and an agent that is slowed for 10 s is refused for 30 s. " +
				"The opening of a session counts as 20.",
			Flag: "agent-message-rate", Env: "AGENTSTATSD_AGENT_MESSAGE_RATE", YAML: "message_rate",
			Default: "200", Value: atLeast(&c.agentMessageRate, 1), Group: &groupAgents,
		},
		{
			Description: "Messages that an agent may send at once.",
			Flag:        "agent-message-burst", Env: "AGENTSTATSD_AGENT_MESSAGE_BURST", YAML: "message_burst",
			Default: "2000", Value: atLeast(&c.agentMessageBurst, 1), Group: &groupAgents,
		},
		{
			Description: "Bytes that an agent may send each second for ever, as --agent-message-rate.",
			Flag:        "agent-byte-rate", Env: "AGENTSTATSD_AGENT_BYTE_RATE", YAML: "byte_rate",
			Default: "512KiB", Value: bytesAtLeast(&c.agentByteRate, 1024), Group: &groupAgents,
		},
		{
			Description: "Bytes that an agent may send at once.",
			Flag:        "agent-byte-burst", Env: "AGENTSTATSD_AGENT_BYTE_BURST", YAML: "byte_burst",
			Default: "8MiB", Value: bytesAtLeast(&c.agentByteBurst, 64<<10), Group: &groupAgents,
		},
		{
			Description: "Refused samples, metadata entries and states of an agent that are tolerated each second for ever. 1 KiB of a message of which something is refused counts as one.",
			Flag:        "agent-refused-rate", Env: "AGENTSTATSD_AGENT_REFUSED_RATE", YAML: "refused_rate",
			Default: "100", Value: atLeast(&c.agentRefusedRate, 1), Group: &groupAgents,
		},
		{
			Description: "Refused items of an agent that are tolerated at once. With more it is refused until its rate has made up for them.",
			Flag:        "agent-refused-burst", Env: "AGENTSTATSD_AGENT_REFUSED_BURST", YAML: "refused_burst",
			Default: "5000", Value: atLeast(&c.agentRefusedBurst, 1), Group: &groupAgents,
		},
		{
			Description: "Agents whose last refusals are kept; those that were refused something longest ago are forgotten.",
			Flag:        "max-refused-agents", Env: "AGENTSTATSD_MAX_REFUSED_AGENTS", YAML: "max_refused_agents",
			Default: "10000", Value: atLeast(&c.maxRefusedAgents, 1), Group: &groupAgents,
		},
		{
			Description: "Bytes in memory of their refusals.",
			Flag:        "max-refused-agents-bytes", Env: "AGENTSTATSD_MAX_REFUSED_AGENTS_BYTES", YAML: "max_refused_agents_bytes",
			Default: "16777216", Value: atLeast(&c.maxRefusedBytes, 64<<10), Group: &groupAgents,
		},
		{
			Description: "Time after which a series that is not reported any more vanishes. At least twice the report interval.",
			Flag:        "series-ttl", Env: "AGENTSTATSD_SERIES_TTL", YAML: "series_ttl",
			Default: "2m", Value: positive(&c.seriesTTL), Group: &groupAgents,
		},
		{
			Description: "Series of all agents together; more that agents forward are refused, what the service computes is not.",
			Flag:        "max-series", Env: "AGENTSTATSD_MAX_SERIES", YAML: "max_series",
			Default: "2000000", Value: atLeast(&c.maxSeries, 1), Group: &groupAgents,
		},
		{
			Description: "Forwarded series of one agent; more are refused.",
			Flag:        "max-series-per-agent", Env: "AGENTSTATSD_MAX_SERIES_PER_AGENT", YAML: "max_series_per_agent",
			Default: "1000", Value: atLeast(&c.maxSeriesPerAgent, 1), Group: &groupAgents,
		},
		{
			Description: "Forwarded series of all agents of one owner of workspaces; more are refused. 0: a quarter of --max-series.",
			Flag:        "max-series-per-owner", Env: "AGENTSTATSD_MAX_SERIES_PER_OWNER", YAML: "max_series_per_owner",
			Default: "0", Value: atLeast(&c.maxSeriesPerOwner, 0), Group: &groupAgents,
		},
		{
			Description: "Bytes of names and labels of the series that all agents forward, as agents send them; series beyond are refused.",
			Flag:        "max-series-bytes", Env: "AGENTSTATSD_MAX_SERIES_BYTES", YAML: "max_series_bytes",
			Default: "512MiB", Value: bytesAtLeast(&c.maxSeriesBytes, 1<<20), Group: &groupAgents,
		},
		{
			Description: "The same of one agent.",
			Flag:        "max-series-bytes-per-agent", Env: "AGENTSTATSD_MAX_SERIES_BYTES_PER_AGENT", YAML: "max_series_bytes_per_agent",
			Default: "1MiB", Value: bytesAtLeast(&c.maxSeriesAgentBytes, 1<<10), Group: &groupAgents,
		},
		{
			Description: "The same of all agents of one owner of workspaces. 0: a quarter of --max-series-bytes.",
			Flag:        "max-series-bytes-per-owner", Env: "AGENTSTATSD_MAX_SERIES_BYTES_PER_OWNER", YAML: "max_series_bytes_per_owner",
			Default: "0", Value: bytesAtLeast(&c.maxSeriesOwnerBytes, 0), Group: &groupAgents,
		},
		{
			Description: "Names of families that all agents forward together, beside the documented ones; more are refused.",
			Flag:        "max-families", Env: "AGENTSTATSD_MAX_FAMILIES", YAML: "max_families",
			Default: "20000", Value: atLeast(&c.maxFamilies, 1), Group: &groupAgents,
		},
		{
			Description: "Names of families that one agent forwards; more are refused.",
			Flag:        "max-families-per-agent", Env: "AGENTSTATSD_MAX_FAMILIES_PER_AGENT", YAML: "max_families_per_agent",
			Default: "200", Value: atLeast(&c.maxFamiliesPerAgent, 1), Group: &groupAgents,
		},
	}
}
