-- +goose Up
-- A random number for each revision of the registrations: one that has another than
-- it had is of another history, as after an older dump was restored.
CREATE TABLE revisions (
    revision bigint NOT NULL PRIMARY KEY,
    token    bigint NOT NULL
);

-- +goose Down
DROP TABLE revisions;
