-- +goose Up

-- The health of each app is a row of its own, so that what two replicas write of
-- one agent is merged here.
ALTER TABLE agent_states DROP CONSTRAINT agent_states_part_check;
ALTER TABLE agent_states ADD CONSTRAINT agent_states_part_check
    CHECK (part IN ('lifecycle', 'network') OR part LIKE 'app_health/%') NOT VALID;
INSERT INTO agent_states (agent_id, part, epoch, sequence, data)
SELECT s.agent_id, 'app_health/' || h.key, s.epoch, s.sequence, h.value
FROM agent_states AS s, jsonb_each(CASE jsonb_typeof(s.data) WHEN 'object' THEN s.data ELSE '{}' END) AS h
WHERE s.part = 'app_health';
DELETE FROM agent_states WHERE part = 'app_health';
ALTER TABLE agent_states VALIDATE CONSTRAINT agent_states_part_check;

-- +goose Down
ALTER TABLE agent_states DROP CONSTRAINT agent_states_part_check;
INSERT INTO agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'app_health', max(epoch), max(sequence), jsonb_object_agg(substr(part, 12), data)
FROM agent_states WHERE part LIKE 'app_health/%' GROUP BY agent_id;
DELETE FROM agent_states WHERE part LIKE 'app_health/%';
ALTER TABLE agent_states ADD CONSTRAINT agent_states_part_check
    CHECK (part IN ('lifecycle', 'app_health', 'network'));
