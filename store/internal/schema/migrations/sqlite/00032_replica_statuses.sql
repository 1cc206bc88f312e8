-- +goose Up

-- What each replica said last of itself: a message ReplicaStatus, and when it did so, in
-- nanoseconds since 1970 by the clock of the database.
CREATE TABLE replica_statuses (
    id       BLOB NOT NULL PRIMARY KEY REFERENCES replicas (id) ON DELETE CASCADE,
    saved_at INTEGER NOT NULL,
    status   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE replica_statuses;
