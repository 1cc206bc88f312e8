-- +goose Up

-- When a part of a state was said, in nanoseconds since 1970; 0: not known. What a relay
-- could not send before does not replace what was said later.
ALTER TABLE agent_states ADD COLUMN said bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE agent_states DROP COLUMN said;
