-- +goose Up

-- What was added of an agent's instances that ended: written is the highest sequence,
-- written_at when it was added. A replica may have reports of each of them, and write
-- them late. The newest instance is in the sum's row.
-- +goose StatementBegin
CREATE TABLE report_instances (
    subscription_id INTEGER NOT NULL,
    agent_id        BLOB    NOT NULL CHECK (length(agent_id) = 16),
    instance_id     BLOB    NOT NULL CHECK (length(instance_id) = 16),
    written         INTEGER NOT NULL,
    written_at      INTEGER NOT NULL,
    PRIMARY KEY (subscription_id, agent_id, instance_id)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd
CREATE INDEX report_instances_written_at ON report_instances (written_at);
INSERT INTO report_instances (subscription_id, agent_id, instance_id, written, written_at)
SELECT subscription_id, agent_id, older_instance_id, older_written, received_at FROM report_sums WHERE older_written > 0;
ALTER TABLE report_sums DROP COLUMN older_written;
ALTER TABLE report_sums DROP COLUMN older_instance_id;

-- +goose Down
ALTER TABLE report_sums ADD COLUMN older_instance_id BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
ALTER TABLE report_sums ADD COLUMN older_written INTEGER NOT NULL DEFAULT 0;
UPDATE report_sums SET older_instance_id = i.instance_id, older_written = i.written
FROM report_instances AS i WHERE i.subscription_id = report_sums.subscription_id AND i.agent_id = report_sums.agent_id
AND NOT EXISTS (
    SELECT 1 FROM report_instances AS n WHERE n.subscription_id = i.subscription_id AND n.agent_id = i.agent_id
    AND (n.written_at, n.instance_id) > (i.written_at, i.instance_id));
DROP TABLE report_instances;
