-- +goose Up

-- As on PostgreSQL, whose statement on states this database runs, too. That on metadata
-- is of its own, and needs no columns.
ALTER TABLE agent_states ADD COLUMN basis INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agent_states ADD COLUMN previous INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE agent_states DROP COLUMN previous;
ALTER TABLE agent_states DROP COLUMN basis;
