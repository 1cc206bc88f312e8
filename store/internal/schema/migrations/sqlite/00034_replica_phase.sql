-- +goose Up
-- Where each replica is in its life, which only rises: 1 it starts, 2 it serves, 3 it
-- leaves; 0: of a version that does not say so. Those that serve share what is not
-- connected.
ALTER TABLE replicas ADD COLUMN phase INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE replicas DROP COLUMN phase;
