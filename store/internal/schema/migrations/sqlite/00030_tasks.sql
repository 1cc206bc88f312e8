-- +goose Up

-- Who may do what one process of coderd or of a bridge at a time may do, until a time in
-- nanoseconds since 1970 by the clock of the database.
CREATE TABLE tasks (
    name       TEXT    NOT NULL PRIMARY KEY,
    holder     BLOB    NOT NULL CHECK (length(holder) = 16),
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose Down
DROP TABLE tasks;
