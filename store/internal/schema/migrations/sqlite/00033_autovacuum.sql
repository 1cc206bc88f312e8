-- +goose Up
-- Of PostgreSQL: SQLite writes a row where it is.

-- +goose Down
-- Nothing was changed.
