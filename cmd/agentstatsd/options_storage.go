package main

import (
	"time"

	"github.com/coder/serpent"
)

// storageOptions say where registrations, state and metadata are kept.
func (c *config) storageOptions() serpent.OptionSet {
	return serpent.OptionSet{
		{
			Description: "Directory of the SQLite database and of generated secrets. One process at a time.",
			Flag:        "data-dir", Env: "AGENTSTATSD_DATA_DIR", YAML: "data_dir",
			Default: "data", Value: serpent.StringOf(&c.dataDir), Group: &groupStorage,
		},
		{
			Description: "A PostgreSQL database, 14 or newer, that replicas of the service share: postgres://user@host/name. " +
				"Its password is better in PGPASSFILE, or the URL in the environment, than in a flag. Empty: SQLite in the data directory.",
			Flag: "database-url", Env: "AGENTSTATSD_DATABASE_URL", YAML: "database_url",
			Value: serpent.StringOf(&c.databaseURL), Group: &groupStorage,
		},
		{
			Description: "Connections to PostgreSQL at once, beside that of the pubsub.",
			Flag:        "database-max-conns", Env: "AGENTSTATSD_DATABASE_MAX_CONNS", YAML: "database_max_conns",
			Default: "10", Value: atLeast(&c.databaseMaxConns, 2), Group: &groupStorage,
		},
		{
			Description: "A pooler in transaction mode, like PgBouncer, stands before PostgreSQL: keep nothing in a session. " +
				"Needs --pubsub-url, as notifications do not arrive through it.",
			Flag: "database-transaction-pooling", Env: "AGENTSTATSD_DATABASE_TRANSACTION_POOLING", YAML: "database_transaction_pooling",
			Default: "false", Value: serpent.BoolOf(&c.databasePooling), Group: &groupStorage,
		},
		{
			Description: "What carries notifications between replicas: nats:// or tls:// for NATS, postgres:// for NOTIFY of a PostgreSQL that is dialed directly. " +
				"Empty: that of the database; in memory with SQLite.",
			Flag: "pubsub-url", Env: "AGENTSTATSD_PUBSUB_URL", YAML: "pubsub_url",
			Value: serpent.StringOf(&c.pubsubURL), Group: &groupStorage,
		},
		{
			Description: "Id of this deployment, a UUID or any name: messages of other deployments on the same NATS or PostgreSQL are discarded. " +
				"It is kept in the database. Empty: the database's own, which is made with it, and anew in a copy. " +
				"To be given where a database was copied as a whole, by a snapshot of its volume. The same on all replicas.",
			Flag: "deployment-id", Env: "AGENTSTATSD_DEPLOYMENT_ID", YAML: "deployment_id",
			Value: serpent.StringOf(&c.deploymentID), Group: &groupStorage,
		},
		{
			Description: "Time after which replicas take one that is silent for gone, and serve in its place what one alone serves. " +
				"The same on all replicas.",
			Flag: "lease-duration", Env: "AGENTSTATSD_LEASE_DURATION", YAML: "lease_duration",
			Default: "15s", Value: notBelow(&c.leaseDuration, 2*time.Second), Group: &groupStorage,
		},
	}
}
