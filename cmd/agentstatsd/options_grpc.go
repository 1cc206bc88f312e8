package main

import (
	"math"
	"time"

	"github.com/coder/serpent"
)

// grpcOptions are of the listener that agents and coderd dial.
func (c *config) grpcOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "The address that agents and coderd dial. Beyond loopback it needs TLS, or --grpc-allow-plaintext.",
			Flag:        "grpc-address", Env: "AGENTSTATSD_GRPC_ADDRESS", YAML: "address",
			Default: "127.0.0.1:2113", Value: serpent.StringOf(&c.grpcAddress), Group: &groupGRPC,
		},
		{
			Description: "Listen beyond loopback without TLS, for example behind a proxy that ends TLS. Tokens then cross that network in the clear.",
			Flag:        "grpc-allow-plaintext", Env: "AGENTSTATSD_GRPC_ALLOW_PLAINTEXT", YAML: "allow_plaintext",
			Default: "false", Value: serpent.BoolOf(&c.grpcAllowPlaintext), Group: &groupGRPC,
		},
		{
			Description: "Certificate chain of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-cert-file", Env: "AGENTSTATSD_TLS_CERT_FILE", YAML: "tls_cert_file",
			Value: serpent.StringOf(&c.tlsCertFile), Group: &groupGRPC,
		},
		{
			Description: "Private key of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-key-file", Env: "AGENTSTATSD_TLS_KEY_FILE", YAML: "tls_key_file",
			Value: serpent.StringOf(&c.tlsKeyFile), Group: &groupGRPC,
		},
		{
			Description: "Certificates that client certificates are verified against, PEM. Needs --coderd-client-san.",
			Flag:        "tls-client-ca-file", Env: "AGENTSTATSD_TLS_CLIENT_CA_FILE", YAML: "tls_client_ca_file",
			Value: serpent.StringOf(&c.tlsClientCAFile), Group: &groupGRPC,
		},
		{
			Description: "DNS name in a verified client certificate that makes its holder coderd. Empty: only the token does.",
			Flag:        "coderd-client-san", Env: "AGENTSTATSD_CODERD_CLIENT_SAN", YAML: "coderd_client_san",
			Value: serpent.StringOf(&c.coderdClientSAN), Group: &groupGRPC,
		},
		{
			Description: "The token that coderd authenticates with, or lines of name: token for several. Made, mode 0600, if it does not exist, but with --database-url. Empty: coderd-token in the data directory.",
			Flag:        "coderd-token-file", Env: "AGENTSTATSD_CODERD_TOKEN_FILE", YAML: "coderd_token_file",
			Value: serpent.StringOf(&c.coderdTokenFile), Group: &groupGRPC,
		},
		{
			Description: "A token whose holders may only push families: workspace proxies, external provisioners. Made, mode 0600, if it does not exist. Empty: there is none.",
			Flag:        "push-token-file", Env: "AGENTSTATSD_PUSH_TOKEN_FILE", YAML: "push_token_file",
			Value: serpent.StringOf(&c.pushTokenFile), Group: &groupGRPC,
		},
		{
			Description: "A token whose holders may only read, as agentstatsd status and its like do: agents with their states and metadata, what the service says of itself, its newest log and profiles. Made, mode 0600, if it does not exist. Empty: there is none.",
			Flag:        "operator-token-file", Env: "AGENTSTATSD_OPERATOR_TOKEN_FILE", YAML: "operator_token_file",
			Value: serpent.StringOf(&c.operatorTokenFile), Group: &groupGRPC,
		},
		{
			Description: "TLS handshakes of a listener, of gRPC or of HTTP, that go on at once, from the client's first message on; more wait. The slowest gives way to one that waits.",
			Flag:        "tls-max-handshakes", Env: "AGENTSTATSD_TLS_MAX_HANDSHAKES", YAML: "tls_max_handshakes",
			Default: "256", Value: atLeast(&c.maxHandshakes, 1), Group: &groupGRPC,
		},
		{
			Description: "The same of one address; in IPv6, of one network of 64 bits.",
			Flag:        "tls-max-handshakes-per-address", Env: "AGENTSTATSD_TLS_MAX_HANDSHAKES_PER_ADDRESS", YAML: "tls_max_handshakes_per_address",
			Default: "64", Value: atLeast(&c.maxHandshakesPerAddr, 1), Group: &groupGRPC,
		},
		{
			Description: "Time for a TLS handshake and its wait; of gRPC at most --grpc-first-message-timeout.",
			Flag:        "tls-handshake-timeout", Env: "AGENTSTATSD_TLS_HANDSHAKE_TIMEOUT", YAML: "tls_handshake_timeout",
			Default: "10s", Value: positive(&c.handshakeTimeout), Group: &groupGRPC,
		},
		{
			Description: "Largest request of coderd, in bytes.",
			Flag:        "max-message-bytes", Env: "AGENTSTATSD_MAX_MESSAGE_BYTES", YAML: "max_message_bytes",
			Default: "4MiB", Value: bytesAtLeast(&c.maxMessageBytes, 64<<10), Group: &groupGRPC,
		},
		{
			Description: "Bytes of messages above 64 KiB that are being received: half for agents, each of which has one at a time, half for coderd, of which pushes have half if there is a --push-token-file. More of them wait, then are refused.",
			Flag:        "max-receiving-bytes", Env: "AGENTSTATSD_MAX_RECEIVING_BYTES", YAML: "max_receiving_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxReceivingBytes, 128<<10), Group: &groupGRPC,
		},
		{
			Description: "Time of a message above 64 KiB from its header to its end, half of which it may wait for room.",
			Flag:        "grpc-message-timeout", Env: "AGENTSTATSD_GRPC_MESSAGE_TIMEOUT", YAML: "message_timeout",
			Default: "30s", Value: positive(&c.messageTimeout), Group: &groupGRPC,
		},
		{
			Description: "Streams at once on one connection; more wait at the client.",
			Flag:        "grpc-max-streams", Env: "AGENTSTATSD_GRPC_MAX_STREAMS", YAML: "max_streams",
			Default: "65536", Value: within(&c.grpcMaxStreams, 1, math.MaxInt32), Group: &groupGRPC,
		},
		{
			Description: "Callers at once that this replica does not know and that wait for what other replicas wrote; more are refused with a delay.",
			Flag:        "max-lookups", Env: "AGENTSTATSD_MAX_LOOKUPS", YAML: "max_lookups",
			Default: "256", Value: atLeast(&c.maxLookups, 1), Group: &groupGRPC,
		},
		{
			Description: "Connections at once; more are closed. 0: three quarters of the files that the process may open.",
			Flag:        "grpc-max-connections", Env: "AGENTSTATSD_GRPC_MAX_CONNECTIONS", YAML: "max_connections",
			Default: "0", Value: atLeast(&c.grpcMaxConnections, 0), Group: &groupGRPC,
		},
		{
			Description: "Connections of one address (IPv6: of one /64) that have not made an authenticated call yet; more are closed.",
			Flag:        "grpc-max-unauthenticated-connections", Env: "AGENTSTATSD_GRPC_MAX_UNAUTHENTICATED_CONNECTIONS", YAML: "max_unauthenticated_connections",
			Default: "1024", Value: atLeast(&c.grpcMaxStrangers, 1), Group: &groupGRPC,
		},
		{
			Description: "Calls on a connection before one of them is authenticated, or of agents that are refused for a while; with more it is closed.",
			Flag:        "grpc-max-unauthenticated-calls", Env: "AGENTSTATSD_GRPC_MAX_UNAUTHENTICATED_CALLS", YAML: "max_unauthenticated_calls",
			Default: "100", Value: atLeast(&c.grpcStrangerCalls, 1), Group: &groupGRPC,
		},
		{
			Description: "Connections and further calls on them, without authentication, of one address (IPv6: of one /64) each second for ever; more are closed. " +
				"Connections that are authenticated do not count.",
			Flag: "grpc-unauthenticated-rate", Env: "AGENTSTATSD_GRPC_UNAUTHENTICATED_RATE", YAML: "unauthenticated_rate",
			Default: "100", Value: atLeast(&c.grpcStrangerRate, 1), Group: &groupGRPC,
		},
		{
			Description: "The same at once.",
			Flag:        "grpc-unauthenticated-burst", Env: "AGENTSTATSD_GRPC_UNAUTHENTICATED_BURST", YAML: "unauthenticated_burst",
			Default: "4096", Value: atLeast(&c.grpcStrangerBurst, 1), Group: &groupGRPC,
		},
		{
			Description: "Calls that are read from a connection of agents each second, a quarter of them at once; with more it is read slowly. An ingress may have many agents on one connection.",
			Flag:        "grpc-agent-call-rate", Env: "AGENTSTATSD_GRPC_AGENT_CALL_RATE", YAML: "agent_call_rate",
			Default: "1000", Value: atLeast(&c.grpcAgentCallRate, 1), Group: &groupGRPC,
		},
		{
			Description: "Calls of health and reflection at once: half of them checks, a quarter watches, a quarter reflection, and of one address a quarter of each; more are refused.",
			Flag:        "grpc-max-open-calls", Env: "AGENTSTATSD_GRPC_MAX_OPEN_CALLS", YAML: "max_open_calls",
			Default: "64", Value: atLeast(&c.grpcMaxOpenCalls, 16), Group: &groupGRPC,
		},
		{
			Description: "Time that a connection has for its first authenticated call, or between two checks of health, before it is closed.",
			Flag:        "grpc-authentication-timeout", Env: "AGENTSTATSD_GRPC_AUTHENTICATION_TIMEOUT", YAML: "authentication_timeout",
			Default: "20s", Value: positive(&c.authenticationTimeout), Group: &groupGRPC,
		},
		{
			Description: "Time from the start of a call to the end of its first message.",
			Flag:        "grpc-first-message-timeout", Env: "AGENTSTATSD_GRPC_FIRST_MESSAGE_TIMEOUT", YAML: "first_message_timeout",
			Default: "10s", Value: positive(&c.firstMessageTimeout), Group: &groupGRPC,
		},
		{
			Description: "Time after which a connection without a call is closed.",
			Flag:        "grpc-idle-timeout", Env: "AGENTSTATSD_GRPC_IDLE_TIMEOUT", YAML: "idle_timeout",
			Default: "5m", Value: positive(&c.grpcIdleTimeout), Group: &groupGRPC,
		},
		{
			Description: "Serve gRPC's reflection beyond loopback, to anyone. On loopback it is always served.",
			Flag:        "grpc-reflection", Env: "AGENTSTATSD_GRPC_REFLECTION", YAML: "reflection",
			Default: "false", Value: serpent.BoolOf(&c.grpcReflection), Group: &groupGRPC,
		},
		{
			Description: "Calls of coderd at once that stream no responses, or whose first message is to come, each of which may have a message of --max-message-bytes in memory; more wait, then are refused. Holders of the --push-token-file and of the --operator-token-file together have a quarter as many of their own.",
			Flag:        "max-coderd-calls", Env: "AGENTSTATSD_MAX_CODERD_CALLS", YAML: "max_coderd_calls",
			Default: "64", Value: atLeast(&c.maxCoderdCalls, 1), Group: &groupGRPC,
		},
		{
			Description: "Watches of coderd at once, of all kinds; more are refused. Those who have the token of --operator-token-file have a quarter of them.",
			Flag:        "max-watches", Env: "AGENTSTATSD_MAX_WATCHES", YAML: "max_watches",
			Default: "256", Value: atLeast(&c.maxWatches, 1), Group: &groupGRPC,
		},
		{
			Description: "Bytes in memory of one watch of metadata: half for what it reads at once, half for what it remembers to have sent, 8 for each value.",
			Flag:        "max-watch-bytes", Env: "AGENTSTATSD_MAX_WATCH_BYTES", YAML: "max_watch_bytes",
			Default: "4MiB", Value: bytesAtLeast(&c.maxWatchBytes, 256<<10), Group: &groupGRPC,
		},
		{
			Description: "The same of all watches, of other reads of metadata, and of reads for watches of stats together: reads wait for room, watches beyond are refused. A watch of agents' states takes at most 120 bytes for each agent.",
			Flag:        "max-watches-bytes", Env: "AGENTSTATSD_MAX_WATCHES_BYTES", YAML: "max_watches_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.maxWatchesBytes, 1<<20), Group: &groupGRPC,
		},
		{
			Description: "Time within which coderd must read the responses of a stream; of one that does not the stream is ended.",
			Flag:        "grpc-send-timeout", Env: "AGENTSTATSD_GRPC_SEND_TIMEOUT", YAML: "send_timeout",
			Default: "30s", Value: positive(&c.grpcSendTimeout), Group: &groupGRPC,
		},
		{
			Description: "Time for which a subscription to agents' reports is kept after its last stream, with what it has gathered.",
			Flag:        "stats-retention", Env: "AGENTSTATSD_STATS_RETENTION", YAML: "stats_retention",
			Default: "24h", Value: notBelow(&c.statsRetention, time.Minute), Group: &groupGRPC,
		},
		{
			Description: "Subscriptions to agents' reports; more are refused.",
			Flag:        "max-report-subscriptions", Env: "AGENTSTATSD_MAX_REPORT_SUBSCRIPTIONS", YAML: "max_report_subscriptions",
			Default: "16", Value: atLeast(&c.maxSubscriptions, 1), Group: &groupGRPC,
		},
		{
			Description: "Agents whose reports the database keeps for one subscription; those of more agents are dropped.",
			Flag:        "max-report-sums", Env: "AGENTSTATSD_MAX_REPORT_SUMS", YAML: "max_report_sums",
			Default: "500000", Value: atLeast(&c.maxReportSums, 1), Group: &groupGRPC,
		},
		{
			Description: "Bytes of agents' newest reports that the database keeps for one subscription; those of more agents are dropped. A report takes some 60 bytes, 18 KB at most.",
			Flag:        "max-report-sum-bytes", Env: "AGENTSTATSD_MAX_REPORT_SUM_BYTES", YAML: "max_report_sum_bytes",
			Default: "256MiB", Value: bytesAtLeast(&c.maxReportSumBytes, 1<<20), Group: &groupGRPC,
		},
		{
			Description: "Agents whose reports wait in memory to be written to subscriptions, while the database cannot be used; those of more agents are dropped.",
			Flag:        "reports-max-pending", Env: "AGENTSTATSD_REPORTS_MAX_PENDING", YAML: "reports_max_pending",
			Default: "100000", Value: atLeast(&c.reportsMaxPending, 1), Group: &groupGRPC,
		},
		{
			Description: "Bytes in memory of these reports; those of more agents are dropped, those of the others are merged. An agent takes some 300 bytes, and 96 for each report.",
			Flag:        "reports-max-pending-bytes", Env: "AGENTSTATSD_REPORTS_MAX_PENDING_BYTES", YAML: "reports_max_pending_bytes",
			Default: "64MiB", Value: bytesAtLeast(&c.reportsPendingBytes, 1<<20), Group: &groupGRPC,
		},
		{
			Description: "Time over which a stopping service asks agents to reconnect, and waits for them, before it closes their streams.",
			Flag:        "drain-timeout", Env: "AGENTSTATSD_DRAIN_TIMEOUT", YAML: "drain_timeout",
			Default: "10s", Value: positive(&c.drainTimeout), Group: &groupGRPC,
		},
	}
}
