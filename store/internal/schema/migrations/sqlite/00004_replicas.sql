-- +goose Up

-- The revision of the registrations, from 1: each change adds one and gives it
-- to the rows that it writes. Removals after the revision removals_after are
-- all in removed.
-- +goose StatementBegin
CREATE TABLE registrations (
    one            INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    revision       INTEGER NOT NULL,
    removals_after INTEGER NOT NULL
) STRICT;
-- +goose StatementEnd
INSERT INTO registrations (one, revision, removals_after) VALUES (1, 1, 1);

ALTER TABLE workspaces ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
ALTER TABLE agents ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
CREATE INDEX workspaces_revision ON workspaces (revision);
CREATE INDEX agents_revision ON agents (revision);

-- What was removed, newest last; the oldest are forgotten. The table of each is
-- its kind.
-- +goose StatementBegin
CREATE TABLE removed (
    number   INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind     TEXT    NOT NULL CHECK (kind IN ('agents', 'workspaces')),
    id       BLOB    NOT NULL CHECK (length(id) = 16),
    revision INTEGER NOT NULL
) STRICT;
-- +goose StatementEnd
CREATE INDEX removed_revision ON removed (revision);

-- The newest session of each agent that had one. replica_id is zero if it is
-- not known.
-- +goose StatementBegin
CREATE TABLE sessions (
    agent_id   BLOB    NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    epoch      INTEGER NOT NULL,
    replica_id BLOB    NOT NULL CHECK (length(replica_id) = 16),
    open       INTEGER NOT NULL CHECK (open IN (0, 1)),
    unary      INTEGER NOT NULL CHECK (unary IN (0, 1)),
    reported   INTEGER NOT NULL CHECK (reported IN (0, 1))
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd
INSERT INTO sessions (agent_id, epoch, replica_id, open, unary, reported)
SELECT id, epoch, zeroblob(16), 0, 0, 0 FROM agents WHERE epoch > 0;
ALTER TABLE agents DROP COLUMN epoch;

-- version counts the writes of a row, from 1.
ALTER TABLE pushes ADD COLUMN version INTEGER NOT NULL DEFAULT 1;

-- The processes of this service that are alive, or were until lately.
-- +goose StatementBegin
CREATE TABLE replicas (
    id    BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name  TEXT    NOT NULL,
    beats INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Who serves what exactly one replica may serve; the zero id: nobody.
-- +goose StatementBegin
CREATE TABLE lease (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    holder BLOB    NOT NULL CHECK (length(holder) = 16),
    beats  INTEGER NOT NULL
) STRICT;
-- +goose StatementEnd
INSERT INTO lease (one, holder, beats) VALUES (1, zeroblob(16), 0);

-- +goose Down
DROP TABLE lease;
DROP TABLE replicas;
ALTER TABLE pushes DROP COLUMN version;
ALTER TABLE agents ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
UPDATE agents SET epoch = coalesce((SELECT s.epoch FROM sessions s WHERE s.agent_id = agents.id), 0);
DROP TABLE sessions;
DROP TABLE removed;
DROP INDEX agents_revision;
DROP INDEX workspaces_revision;
ALTER TABLE agents DROP COLUMN revision;
ALTER TABLE workspaces DROP COLUMN revision;
DROP TABLE registrations;
