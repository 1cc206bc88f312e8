-- +goose Up

-- registered is the revision at which the agent was made known: who was removed
-- and comes back has another one.
ALTER TABLE agents ADD COLUMN registered INTEGER NOT NULL DEFAULT 0;

-- Who was named again without a change, one row for each revision at which some
-- were: the ids, of 16 bytes each. Those after the revision named_after are all
-- there.
-- +goose StatementBegin
CREATE TABLE named (
    revision   INTEGER NOT NULL PRIMARY KEY,
    agents     BLOB    NOT NULL,
    workspaces BLOB    NOT NULL
) STRICT;
-- +goose StatementEnd
ALTER TABLE registrations ADD COLUMN named_after INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE registrations DROP COLUMN named_after;
DROP TABLE named;
ALTER TABLE agents DROP COLUMN registered;
