-- +goose Up

-- What coderd knew of an agent's state when it registered it, as JSON; empty: nothing.
ALTER TABLE agents ADD COLUMN observed text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE agents DROP COLUMN observed;
