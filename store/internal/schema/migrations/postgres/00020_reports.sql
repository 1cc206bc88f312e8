-- +goose Up

-- Durable subscriptions to what agents report. incarnation is random. number is
-- that of the newest batch. owner is the stream that has it, until owner_until;
-- zero: none. since is when all replicas added to it. Times are by this server's
-- clock.
CREATE TABLE report_subscriptions (
    id          bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text   COLLATE "C" NOT NULL UNIQUE,
    incarnation bigint NOT NULL,
    number      bigint NOT NULL,
    owner       uuid   NOT NULL,
    owner_until bigint NOT NULL,
    since       bigint
) WITH (fillfactor = 50);

-- The replicas that add to subscriptions: the newest write of each, and when it
-- was last heard of.
CREATE TABLE report_writers (
    replica_id uuid   NOT NULL PRIMARY KEY,
    sequence   bigint NOT NULL,
    seen_at    bigint NOT NULL
) WITH (fillfactor = 50);

-- Which replicas add to which subscriptions.
CREATE TABLE report_confirmations (
    subscription_id bigint NOT NULL REFERENCES report_subscriptions (id) ON DELETE CASCADE,
    replica_id      uuid   NOT NULL,
    PRIMARY KEY (subscription_id, replica_id)
);

-- What agents reported and no batch has. There is no reference to agents: what a
-- removed one last counted is delivered. That to the subscription is kept by who
-- writes, who locks it first: a check for each row would cost as much as the row.
CREATE TABLE report_sums (
    subscription_id bigint NOT NULL,
    agent_id        uuid   NOT NULL,
    workspace_id    uuid   NOT NULL,
    epoch           bigint NOT NULL,
    sequence        bigint NOT NULL,
    reports         bigint NOT NULL,
    rx_packets      bigint NOT NULL,
    rx_bytes        bigint NOT NULL,
    tx_packets      bigint NOT NULL,
    tx_bytes        bigint NOT NULL,
    received_at     bigint NOT NULL,
    last_used_at    bigint NOT NULL,
    data            bytea  NOT NULL,
    PRIMARY KEY (subscription_id, agent_id)
);

-- Batches that are not acked. data is encoded by the store.
CREATE TABLE report_batches (
    subscription_id bigint NOT NULL REFERENCES report_subscriptions (id) ON DELETE CASCADE,
    number          bigint NOT NULL,
    data            bytea  NOT NULL,
    PRIMARY KEY (subscription_id, number)
);

-- +goose Down
DROP TABLE report_batches;
DROP TABLE report_sums;
DROP TABLE report_confirmations;
DROP TABLE report_writers;
DROP TABLE report_subscriptions;
