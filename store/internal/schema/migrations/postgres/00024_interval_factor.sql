-- +goose Up

-- How busy each replica is, as shares of targets, and by how much the holder of the
-- lease lengthens the intervals of agents.
ALTER TABLE replicas ADD COLUMN load_cpu double precision NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN load_pending_age double precision NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN load_flush double precision NOT NULL DEFAULT 0;
ALTER TABLE lease ADD COLUMN interval_factor double precision NOT NULL DEFAULT 1;

-- +goose Down
ALTER TABLE lease DROP COLUMN interval_factor;
ALTER TABLE replicas DROP COLUMN load_flush;
ALTER TABLE replicas DROP COLUMN load_pending_age;
ALTER TABLE replicas DROP COLUMN load_cpu;
