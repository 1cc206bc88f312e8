-- +goose Up

-- Ids are the 16 bytes of a UUID; times are nanoseconds since 1970, NULL: none.

-- +goose StatementBegin
CREATE TABLE workspaces (
    id                BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name              TEXT    NOT NULL,
    owner_id          BLOB    NOT NULL CHECK (length(owner_id) = 16),
    owner_username    TEXT    NOT NULL,
    template_id       BLOB    NOT NULL CHECK (length(template_id) = 16),
    template_name     TEXT    NOT NULL,
    template_version  TEXT    NOT NULL,
    organization      TEXT    NOT NULL,
    build_id          BLOB    NOT NULL CHECK (length(build_id) = 16),
    build_created_at  INTEGER,
    build_transition  TEXT    NOT NULL,
    build_is_prebuild INTEGER NOT NULL CHECK (build_is_prebuild IN (0, 1))
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- apps and metadata_keys are JSON arrays. connection_timeout is in nanoseconds.
-- epoch is that of the agent's newest session; 0: it never had one.
-- +goose StatementBegin
CREATE TABLE agents (
    id                 BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    workspace_id       BLOB    NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    parent_id          BLOB    NOT NULL CHECK (length(parent_id) = 16),
    name               TEXT    NOT NULL,
    created_at         INTEGER,
    connection_timeout INTEGER NOT NULL,
    token_sha256       BLOB    NOT NULL CHECK (length(token_sha256) = 32),
    apps               TEXT    NOT NULL CHECK (json_valid(apps)),
    metadata_keys      TEXT    NOT NULL CHECK (json_valid(metadata_keys)),
    epoch              INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Deleting a workspace looks for its agents.
CREATE INDEX agents_workspace_id ON agents (workspace_id);

-- What agents said of themselves: data is JSON, one row for each part.
-- +goose StatementBegin
CREATE TABLE agent_states (
    agent_id BLOB    NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    part     TEXT    NOT NULL CHECK (part IN ('lifecycle', 'app_health', 'network')),
    epoch    INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data     TEXT    NOT NULL CHECK (json_valid(data)),
    PRIMARY KEY (agent_id, part)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Newest value of each key: a higher (epoch, sequence) is newer.
-- +goose StatementBegin
CREATE TABLE metadata (
    agent_id     BLOB    NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    key          TEXT    NOT NULL,
    value        TEXT    NOT NULL,
    error        TEXT    NOT NULL,
    collected_at INTEGER,
    epoch        INTEGER NOT NULL,
    sequence     INTEGER NOT NULL,
    PRIMARY KEY (agent_id, key)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- +goose Down
DROP TABLE metadata;
DROP TABLE agent_states;
DROP TABLE agents;
DROP TABLE workspaces;
