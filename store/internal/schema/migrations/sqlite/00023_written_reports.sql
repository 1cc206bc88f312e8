-- +goose Up

-- A sum stays when a batch has it, as the record of which reports were added: written is
-- the highest sequence of an instance. Of the instance before it is older_written, whose
-- reports may come late. Only a sum that is pending counts. The index leads to those.
ALTER TABLE report_sums ADD COLUMN pending INTEGER NOT NULL DEFAULT 1;
ALTER TABLE report_sums ADD COLUMN instance_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
ALTER TABLE report_sums ADD COLUMN written INTEGER NOT NULL DEFAULT 0;
ALTER TABLE report_sums ADD COLUMN older_instance_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
ALTER TABLE report_sums ADD COLUMN older_written INTEGER NOT NULL DEFAULT 0;
CREATE INDEX report_sums_pending ON report_sums (subscription_id, agent_id) WHERE pending;

-- found is the outcome of the writer's newest write, too.
ALTER TABLE report_writers ADD COLUMN found INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE report_writers DROP COLUMN found;
DROP INDEX report_sums_pending;
DELETE FROM report_sums WHERE NOT pending;
ALTER TABLE report_sums DROP COLUMN older_written;
ALTER TABLE report_sums DROP COLUMN older_instance_id;
ALTER TABLE report_sums DROP COLUMN written;
ALTER TABLE report_sums DROP COLUMN instance_id;
ALTER TABLE report_sums DROP COLUMN pending;
