-- +goose Up

-- Who may do what one process of coderd or of a bridge at a time may do, until a time in
-- nanoseconds since 1970 by the clock of the database.
CREATE TABLE tasks (
    name       text   NOT NULL PRIMARY KEY,
    holder     uuid   NOT NULL,
    expires_at bigint NOT NULL
);

-- +goose Down
DROP TABLE tasks;
