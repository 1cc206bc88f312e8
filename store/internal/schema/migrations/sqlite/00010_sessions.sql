-- +goose Up
-- Agents have no sessions but streams.
ALTER TABLE sessions DROP COLUMN unary;

-- +goose Down
ALTER TABLE sessions ADD COLUMN unary INTEGER NOT NULL DEFAULT 0 CHECK (unary IN (0, 1));
