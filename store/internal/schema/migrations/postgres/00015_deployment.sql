-- +goose Up

-- Which deployment the database is of. cluster and object say where it was when
-- the id was made: what was copied from there is another deployment. Empty: not
-- known.
CREATE TABLE agentstatsd_deployment (
    one     boolean NOT NULL PRIMARY KEY CHECK (one),
    id      uuid NOT NULL,
    cluster text NOT NULL,
    object  text NOT NULL
);

-- +goose Down
DROP TABLE agentstatsd_deployment;
