-- +goose Up

-- Times are nanoseconds since 1970 in a bigint, NULL: none, as in SQLite: what
-- is read is what was written on either database. A timestamptz keeps
-- microseconds, and would round away which of two is later.

-- The revision of the registrations, from 1: each change adds one and gives it
-- to the rows that it writes. Removals after the revision removals_after are
-- all in removed.
CREATE TABLE registrations (
    one            boolean NOT NULL PRIMARY KEY CHECK (one),
    revision       bigint  NOT NULL,
    removals_after bigint  NOT NULL
);
INSERT INTO registrations (one, revision, removals_after) VALUES (true, 1, 1);

CREATE TABLE workspaces (
    id                uuid    NOT NULL PRIMARY KEY,
    name              text    NOT NULL,
    owner_id          uuid    NOT NULL,
    owner_username    text    NOT NULL,
    template_id       uuid    NOT NULL,
    template_name     text    NOT NULL,
    template_version  text    NOT NULL,
    organization      text    NOT NULL,
    build_id          uuid    NOT NULL,
    build_created_at  bigint,
    build_transition  text    NOT NULL,
    build_is_prebuild boolean NOT NULL,
    revision          bigint  NOT NULL
);
CREATE INDEX workspaces_revision ON workspaces (revision);

-- apps and metadata_keys are JSON arrays. connection_timeout is in nanoseconds.
CREATE TABLE agents (
    id                 uuid   NOT NULL PRIMARY KEY,
    workspace_id       uuid   NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    parent_id          uuid   NOT NULL,
    name               text   NOT NULL,
    created_at         bigint,
    connection_timeout bigint NOT NULL,
    token_sha256       bytea  NOT NULL CHECK (length(token_sha256) = 32),
    apps               jsonb  NOT NULL,
    metadata_keys      jsonb  NOT NULL,
    revision           bigint NOT NULL
);
-- Deleting a workspace looks for its agents.
CREATE INDEX agents_workspace_id ON agents (workspace_id);
CREATE INDEX agents_revision ON agents (revision);

-- What was removed, newest last; the oldest are forgotten. The table of each is
-- its kind.
CREATE TABLE removed (
    number   bigint NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind     text   NOT NULL CHECK (kind IN ('agents', 'workspaces')),
    id       uuid   NOT NULL,
    revision bigint NOT NULL
);
CREATE INDEX removed_revision ON removed (revision);

-- What agents said of themselves, one row for each part. changed is the
-- transaction that wrote the row: with the oldest one that a snapshot sees
-- running, a reader learns what was committed since, in whatever order.
CREATE TABLE agent_states (
    agent_id uuid   NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    part     text   COLLATE "C" NOT NULL CHECK (part IN ('lifecycle', 'app_health', 'network')),
    epoch    bigint NOT NULL,
    sequence bigint NOT NULL,
    data     jsonb  NOT NULL,
    changed  xid8   NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (agent_id, part)
);
CREATE INDEX agent_states_changed ON agent_states (changed);

-- The newest session of each agent that had one. replica_id is zero if it is
-- not known. changed is as above.
CREATE TABLE sessions (
    agent_id   uuid    NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    epoch      bigint  NOT NULL,
    replica_id uuid    NOT NULL,
    open       boolean NOT NULL,
    unary      boolean NOT NULL,
    reported   boolean NOT NULL,
    changed    xid8    NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX sessions_changed ON sessions (changed);

-- Newest value of each key: a higher (epoch, sequence) is newer. Keys are in the
-- order of their bytes whatever the locale. No index has what an update
-- changes, so with room in its page a new version of a row touches that page
-- alone.
CREATE TABLE metadata (
    agent_id     uuid   NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    key          text   COLLATE "C" NOT NULL,
    value        text   NOT NULL,
    error        text   NOT NULL,
    collected_at bigint,
    epoch        bigint NOT NULL,
    sequence     bigint NOT NULL,
    PRIMARY KEY (agent_id, key)
) WITH (fillfactor = 80);

-- What coderd instances pushed: one row for each, and one with the zero id for
-- those that are folded into one. data is the federation's, compressed already.
-- version counts the writes of a row, from 1.
CREATE TABLE pushes (
    instance_id uuid   NOT NULL PRIMARY KEY,
    replica     text   NOT NULL,
    updated_at  bigint,
    data        bytea  NOT NULL,
    version     bigint NOT NULL
);
ALTER TABLE pushes ALTER COLUMN data SET STORAGE EXTERNAL;

-- Builds whose duration was observed: each is, at most once.
CREATE TABLE builds_observed (
    build_id    uuid   NOT NULL PRIMARY KEY,
    observed_at bigint NOT NULL
);
-- Old rows are looked for with each new one.
CREATE INDEX builds_observed_observed_at ON builds_observed (observed_at);

-- The processes of this service that are alive, or were until lately.
CREATE TABLE replicas (
    id    uuid   NOT NULL PRIMARY KEY,
    name  text   NOT NULL,
    beats bigint NOT NULL
);

-- Who serves what exactly one replica may serve; the zero id: nobody.
CREATE TABLE lease (
    one    boolean NOT NULL PRIMARY KEY CHECK (one),
    holder uuid    NOT NULL,
    beats  bigint  NOT NULL
);
INSERT INTO lease (one, holder, beats) VALUES (true, '00000000-0000-0000-0000-000000000000', 0);

-- +goose Down
DROP TABLE lease;
DROP TABLE replicas;
DROP TABLE builds_observed;
DROP TABLE pushes;
DROP TABLE metadata;
DROP TABLE sessions;
DROP TABLE agent_states;
DROP TABLE removed;
DROP TABLE agents;
DROP TABLE workspaces;
DROP TABLE registrations;
