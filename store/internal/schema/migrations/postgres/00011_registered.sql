-- +goose Up

-- registered is the revision at which the agent was made known: who was removed
-- and comes back has another one.
ALTER TABLE agents ADD COLUMN registered bigint NOT NULL DEFAULT 0;

-- Who was named again without a change, one row for each revision at which some
-- were: the ids, of 16 bytes each. Those after the revision named_after are all
-- there.
CREATE TABLE named (
    revision   bigint NOT NULL PRIMARY KEY,
    agents     bytea  NOT NULL,
    workspaces bytea  NOT NULL
);
ALTER TABLE registrations ADD COLUMN named_after bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE registrations DROP COLUMN named_after;
DROP TABLE named;
ALTER TABLE agents DROP COLUMN registered;
