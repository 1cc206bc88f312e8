package main

import (
	"github.com/coder/serpent"
)

// grpcOptions are of the listener that agents and coderd dial.
func (c *config) grpcOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Name:        "gRPC Address",
			Description: "The address that agents and coderd dial. Beyond loopback it needs TLS, or --grpc-allow-plaintext.",
			Flag:        "grpc-address", Env: "AGENTSTATSD_GRPC_ADDRESS", YAML: "address",
			Default: "127.0.0.1:2113", Value: serpent.StringOf(&c.grpcAddress), Group: &groupGRPC,
		},
		{
			Name:        "gRPC Allow Plaintext",
			Description: "Listen beyond loopback without TLS, for example behind a proxy that ends TLS. Tokens then cross that network in the clear.",
			Flag:        "grpc-allow-plaintext", Env: "AGENTSTATSD_GRPC_ALLOW_PLAINTEXT", YAML: "allow_plaintext",
			Default: "false", Value: serpent.BoolOf(&c.grpcAllowPlaintext), Group: &groupGRPC,
		},
		{
			Name:        "TLS Cert File",
			Description: "Certificate chain of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-cert-file", Env: "AGENTSTATSD_TLS_CERT_FILE", YAML: "tls_cert_file",
			Value: serpent.StringOf(&c.tlsCertFile), Group: &groupGRPC,
		},
		{
			Name:        "TLS Key File",
			Description: "Private key of the gRPC listener, PEM. Read again when it changes.",
			Flag:        "tls-key-file", Env: "AGENTSTATSD_TLS_KEY_FILE", YAML: "tls_key_file",
			Value: serpent.StringOf(&c.tlsKeyFile), Group: &groupGRPC,
		},
		{
			Name:        "TLS Client CA File",
			Description: "Certificates that client certificates are verified against, PEM. Needs --coderd-client-san.",
			Flag:        "tls-client-ca-file", Env: "AGENTSTATSD_TLS_CLIENT_CA_FILE", YAML: "tls_client_ca_file",
			Value: serpent.StringOf(&c.tlsClientCAFile), Group: &groupGRPC,
		},
		{
			Name:        "Coderd Client SAN",
			Description: "DNS name in a verified client certificate that makes its holder coderd. Empty: only the token does.",
			Flag:        "coderd-client-san", Env: "AGENTSTATSD_CODERD_CLIENT_SAN", YAML: "coderd_client_san",
			Value: serpent.StringOf(&c.coderdClientSAN), Group: &groupGRPC,
		},
		{
			Name:        "Coderd Token File",
			Description: "The token that coderd authenticates with. Made, mode 0600, if it does not exist. Empty: coderd-token in the data directory.",
			Flag:        "coderd-token-file", Env: "AGENTSTATSD_CODERD_TOKEN_FILE", YAML: "coderd_token_file",
			Value: serpent.StringOf(&c.coderdTokenFile), Group: &groupGRPC,
		},
		{
			Name:        "Max Message Bytes",
			Description: "Largest request of coderd, in bytes.",
			Flag:        "max-message-bytes", Env: "AGENTSTATSD_MAX_MESSAGE_BYTES", YAML: "max_message_bytes",
			Default: "4194304", Value: atLeast(&c.maxMessageBytes, 64<<10), Group: &groupGRPC,
		},
		{
			Name:        "Max Watches",
			Description: "Watches of coderd at once, of all kinds; more are refused.",
			Flag:        "max-watches", Env: "AGENTSTATSD_MAX_WATCHES", YAML: "max_watches",
			Default: "256", Value: atLeast(&c.maxWatches, 1), Group: &groupGRPC,
		},
		{
			Name:        "Stats Retention",
			Description: "Time for which a named watch of agents' stats is kept after its stream ended, so that it loses nothing.",
			Flag:        "stats-retention", Env: "AGENTSTATSD_STATS_RETENTION", YAML: "stats_retention",
			Default: "10m", Value: longerThan(&c.statsRetention, 0), Group: &groupGRPC,
		},
		{
			Name:        "Drain Timeout",
			Description: "Time over which a stopping service asks agents to reconnect, and waits for them, before it closes their streams.",
			Flag:        "drain-timeout", Env: "AGENTSTATSD_DRAIN_TIMEOUT", YAML: "drain_timeout",
			Default: "10s", Value: longerThan(&c.drainTimeout, 0), Group: &groupGRPC,
		},
	}
}
