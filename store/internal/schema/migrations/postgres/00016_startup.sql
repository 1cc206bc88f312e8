-- +goose Up

-- The beginning and the end of the newest start are rows of their own, so that what
-- two replicas write of one agent is merged here.
ALTER TABLE agent_states DROP CONSTRAINT agent_states_part_check;
ALTER TABLE agent_states ADD CONSTRAINT agent_states_part_check
    CHECK (part IN ('lifecycle', 'started', 'ready', 'network') OR part LIKE 'app_health/%') NOT VALID;
INSERT INTO agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'ready', epoch, sequence, jsonb_build_object(
    'started_at', coalesce(data->'started_at', data->'ready_at'), 'ready_at', data->'ready_at', 'result', data->'result')
FROM agent_states WHERE part = 'lifecycle' AND data ? 'ready_at';
-- It began before it ended.
INSERT INTO agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'started', epoch, sequence - CASE WHEN data ? 'ready_at' THEN 1 ELSE 0 END,
    jsonb_build_object('started_at', data->'started_at')
FROM agent_states WHERE part = 'lifecycle' AND data ? 'started_at';
UPDATE agent_states SET data = data - 'started_at' - 'ready_at' - 'result' WHERE part = 'lifecycle';
ALTER TABLE agent_states VALIDATE CONSTRAINT agent_states_part_check;

-- +goose Down
UPDATE agent_states AS s SET data = s.data || p.data FROM agent_states AS p
WHERE s.part = 'lifecycle' AND p.part = 'ready' AND p.agent_id = s.agent_id;
-- An end that is older than the beginning is not of this start.
UPDATE agent_states AS s SET data = p.data || CASE
    WHEN EXISTS (SELECT 1 FROM agent_states AS r WHERE r.agent_id = s.agent_id AND r.part = 'ready'
        AND (r.epoch, r.sequence) > (p.epoch, p.sequence))
    THEN s.data - 'started_at' ELSE s.data - 'started_at' - 'ready_at' - 'result' END
FROM agent_states AS p
WHERE s.part = 'lifecycle' AND p.part = 'started' AND p.agent_id = s.agent_id;
DELETE FROM agent_states WHERE part IN ('started', 'ready');
ALTER TABLE agent_states DROP CONSTRAINT agent_states_part_check;
ALTER TABLE agent_states ADD CONSTRAINT agent_states_part_check
    CHECK (part IN ('lifecycle', 'network') OR part LIKE 'app_health/%');
