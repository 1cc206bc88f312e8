-- +goose Up

-- The health of each app is a row of its own, as on PostgreSQL.
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
INSERT INTO new_agent_states SELECT * FROM agent_states WHERE part <> 'app_health';
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT s.agent_id, 'app_health/' || h.key, s.epoch, s.sequence, json_quote(h.value)
FROM agent_states AS s, json_each(CASE json_type(s.data) WHEN 'object' THEN s.data ELSE '{}' END) AS h
WHERE s.part = 'app_health';
DROP TABLE agent_states;
ALTER TABLE new_agent_states RENAME TO agent_states;

-- +goose Down
-- +goose StatementBegin
CREATE TABLE new_agent_states (
    agent_id BLOB    NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    part     TEXT    NOT NULL CHECK (part IN ('lifecycle', 'app_health', 'network')),
    epoch    INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    data     TEXT    NOT NULL CHECK (json_valid(data)),
    PRIMARY KEY (agent_id, part)
) STRICT, WITHOUT ROWID;
-- +goose StatementEnd
INSERT INTO new_agent_states SELECT * FROM agent_states WHERE part NOT LIKE 'app_health/%';
INSERT INTO new_agent_states (agent_id, part, epoch, sequence, data)
SELECT agent_id, 'app_health', max(epoch), max(sequence), json_group_object(substr(part, 12), json(data))
FROM agent_states WHERE part LIKE 'app_health/%' GROUP BY agent_id;
DROP TABLE agent_states;
ALTER TABLE new_agent_states RENAME TO agent_states;
