-- +goose Up

-- How busy each replica is, as shares of targets, and by how much the holder of the
-- lease lengthens the intervals of agents.
ALTER TABLE replicas ADD COLUMN load_cpu REAL NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN load_pending_age REAL NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN load_flush REAL NOT NULL DEFAULT 0;
ALTER TABLE lease ADD COLUMN interval_factor REAL NOT NULL DEFAULT 1;

-- +goose Down
ALTER TABLE lease DROP COLUMN interval_factor;
ALTER TABLE replicas DROP COLUMN load_flush;
ALTER TABLE replicas DROP COLUMN load_pending_age;
ALTER TABLE replicas DROP COLUMN load_cpu;
