-- +goose Up
-- A random number for each revision of the registrations: one that has another than
-- it had is of another history, as after an older dump was restored.
-- +goose StatementBegin
CREATE TABLE revisions (
    revision INTEGER NOT NULL PRIMARY KEY,
    token    INTEGER NOT NULL
) STRICT;
-- +goose StatementEnd

-- +goose Down
DROP TABLE revisions;
