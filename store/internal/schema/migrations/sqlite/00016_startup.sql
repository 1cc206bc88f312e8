-- +goose Up

-- The beginning and the end of the newest start are rows of their own, as on
-- PostgreSQL.
-- +goose StatementBegin
CREATE TABLE new_agent_states (
    agent_id BLOB    NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    part     TEXT    NOT NULL CHECK (part IN ('lifecycle', 'started', 'ready', 'network') OR part LIKE 'app_health/%'),
    epoch    INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data     TEXT    NOT NULL CHECK (json_valid(data)),
    PRIMARY KEY (agent_id, part)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, part, epoch, sequence, CASE part
    WHEN 'lifecycle' THEN json_remove(data, '$.started_at', '$.ready_at', '$.result') ELSE data END
FROM agent_states;
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'ready', epoch, sequence, json_object(
    'started_at', coalesce(data->>'started_at', data->>'ready_at'), 'ready_at', data->>'ready_at', 'result', data->>'result')
FROM agent_states WHERE part = 'lifecycle' AND data->>'ready_at' IS NOT NULL;
-- It began before it ended.
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'started', epoch, sequence - (data->>'ready_at' IS NOT NULL), json_object('started_at', data->>'started_at')
FROM agent_states WHERE part = 'lifecycle' AND data->>'started_at' IS NOT NULL;
DROP TABLE agent_states;
ALTER TABLE new_agent_states RENAME TO agent_states;

-- +goose Down
-- +goose StatementBegin
CREATE TABLE new_agent_states (
    agent_id BLOB    NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    part     TEXT    NOT NULL CHECK (part IN ('lifecycle', 'network') OR part LIKE 'app_health/%'),
    epoch    INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data     TEXT    NOT NULL CHECK (json_valid(data)),
    PRIMARY KEY (agent_id, part)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd
INSERT INTO new_agent_states SELECT * FROM agent_states WHERE part NOT IN ('lifecycle', 'started', 'ready');
-- An end that is older than the beginning is not of this start.
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT l.agent_id, l.part, l.epoch, l.sequence, json_patch(json_patch(l.data, coalesce(r.data, '{}')), coalesce(s.data, '{}'))
FROM agent_states AS l
LEFT JOIN agent_states AS s ON s.agent_id = l.agent_id AND s.part = 'started'
LEFT JOIN agent_states AS r ON r.agent_id = l.agent_id AND r.part = 'ready'
    AND (s.agent_id IS NULL OR (r.epoch, r.sequence) > (s.epoch, s.sequence))
WHERE l.part = 'lifecycle';
DROP TABLE agent_states;
ALTER TABLE new_agent_states RENAME TO agent_states;
