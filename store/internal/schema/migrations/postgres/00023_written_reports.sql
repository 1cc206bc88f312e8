-- +goose Up

-- A sum stays when a batch has it, as the record of which reports were added: written is
-- the highest sequence of an instance. Of the instance before it is older_written, whose
-- reports may come late. Only a sum that is pending counts. The index leads to those.
ALTER TABLE report_sums
    ADD COLUMN pending           boolean NOT NULL DEFAULT true,
    ADD COLUMN instance_id       uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    ADD COLUMN written           bigint  NOT NULL DEFAULT 0,
    ADD COLUMN older_instance_id uuid    NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    ADD COLUMN older_written     bigint  NOT NULL DEFAULT 0;
CREATE INDEX report_sums_pending ON report_sums (subscription_id, agent_id) WHERE pending;

-- found is the outcome of the writer's newest write, too.
ALTER TABLE report_writers ADD COLUMN found bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE report_writers DROP COLUMN found;
DROP INDEX report_sums_pending;
DELETE FROM report_sums WHERE NOT pending;
ALTER TABLE report_sums
    DROP COLUMN older_written, DROP COLUMN older_instance_id, DROP COLUMN written, DROP COLUMN instance_id, DROP COLUMN pending;
