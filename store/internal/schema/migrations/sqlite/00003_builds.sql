-- +goose Up

-- Builds whose duration was observed: each is, at most once.
-- +goose StatementBegin
CREATE TABLE builds_observed (
    build_id    BLOB    NOT NULL PRIMARY KEY CHECK (length(build_id) = 16),
    observed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd

-- Old rows are looked for with each new one.
CREATE INDEX builds_observed_observed_at ON builds_observed (observed_at);

-- +goose Down
DROP TABLE builds_observed;
