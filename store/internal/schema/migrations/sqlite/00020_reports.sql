-- +goose Up

-- Durable subscriptions to what agents report. incarnation is random. number is
-- that of the newest batch. owner is the stream that has it, until owner_until;
-- zero: none. since is when all replicas added to it.
-- +goose StatementBegin
CREATE TABLE report_subscriptions (
    id          INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    name        TEXT    NOT NULL UNIQUE,
    incarnation INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    owner       BLOB    NOT NULL CHECK (length(owner) = 16),
    owner_until INTEGER NOT NULL,
    since       INTEGER
) STRICT;
-- +goose StatementEnd

-- The replicas that add to subscriptions: the newest write of each, and when it
-- was last heard of.
-- +goose StatementBegin
CREATE TABLE report_writers (
    replica_id BLOB    NOT NULL PRIMARY KEY CHECK (length(replica_id) = 16),
    sequence   INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Which replicas add to which subscriptions.
-- +goose StatementBegin
CREATE TABLE report_confirmations (
    subscription_id INTEGER NOT NULL REFERENCES report_subscriptions (id) ON DELETE CASCADE,
    replica_id      BLOB    NOT NULL CHECK (length(replica_id) = 16),
    PRIMARY KEY (subscription_id, replica_id)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- What agents reported and no batch has. There is no reference to agents: what a
-- removed one last counted is delivered.
-- +goose StatementBegin
CREATE TABLE report_sums (
    subscription_id INTEGER NOT NULL,
    agent_id        BLOB    NOT NULL CHECK (length(agent_id) = 16),
    workspace_id    BLOB    NOT NULL CHECK (length(workspace_id) = 16),
    epoch           INTEGER NOT NULL,
    sequence        INTEGER NOT NULL,
    reports         INTEGER NOT NULL,
    rx_packets      INTEGER NOT NULL,
    rx_bytes        INTEGER NOT NULL,
    tx_packets      INTEGER NOT NULL,
    tx_bytes        INTEGER NOT NULL,
    received_at     INTEGER NOT NULL,
    last_used_at    INTEGER NOT NULL,
    data            BLOB    NOT NULL,
    PRIMARY KEY (subscription_id, agent_id)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Batches that are not acked. data is encoded by the store.
-- +goose StatementBegin
CREATE TABLE report_batches (
    subscription_id INTEGER NOT NULL REFERENCES report_subscriptions (id) ON DELETE CASCADE,
    number          INTEGER NOT NULL,
    data            BLOB    NOT NULL,
    PRIMARY KEY (subscription_id, number)
) STRICT;
-- +goose StatementEnd

-- +goose Down
DROP TABLE report_batches;
DROP TABLE report_sums;
DROP TABLE report_confirmations;
DROP TABLE report_writers;
DROP TABLE report_subscriptions;
