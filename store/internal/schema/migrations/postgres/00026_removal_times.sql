-- +goose Up

-- When something was removed at the revision, by the clock of the database; 0: nothing was.
ALTER TABLE revisions ADD COLUMN removed_at bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE revisions DROP COLUMN removed_at;
