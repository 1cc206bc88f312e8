-- +goose Up

-- Which deployment the database is of. cluster and object say where it was when
-- the id was made: what was copied from there is another deployment. Empty: not
-- known.
-- +goose StatementBegin
CREATE TABLE agentstatsd_deployment (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    id      BLOB NOT NULL CHECK (length(id) = 16),
    cluster TEXT NOT NULL,
    object  TEXT NOT NULL
) STRICT;
-- +goose StatementEnd

-- +goose Down
DROP TABLE agentstatsd_deployment;
