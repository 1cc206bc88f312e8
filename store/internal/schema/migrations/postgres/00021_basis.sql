-- +goose Up

-- What the session that writes a row knew of those before it. ON CONFLICT sees nothing
-- of what is to be written but columns: nobody reads them of a row that is stored.
ALTER TABLE metadata ADD COLUMN basis bigint NOT NULL DEFAULT 0, ADD COLUMN previous bigint NOT NULL DEFAULT 0;
ALTER TABLE agent_states ADD COLUMN basis bigint NOT NULL DEFAULT 0, ADD COLUMN previous bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE agent_states DROP COLUMN basis, DROP COLUMN previous;
ALTER TABLE metadata DROP COLUMN basis, DROP COLUMN previous;
