-- +goose Up

-- What coderd instances pushed: one row for each, and one with the zero id for
-- those that are folded into one. data is the federation's.
-- +goose StatementBegin
CREATE TABLE pushes (
    instance_id BLOB    NOT NULL PRIMARY KEY CHECK (length(instance_id) = 16),
    replica     TEXT    NOT NULL,
    updated_at  INTEGER,
    data        BLOB    NOT NULL
) STRICT;
-- +goose StatementEnd

-- +goose Down
DROP TABLE pushes;
