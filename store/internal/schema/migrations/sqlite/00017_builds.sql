-- +goose Up
-- Old records of builds go unless a workspace has the build.
CREATE INDEX workspaces_build_id ON workspaces (build_id);

-- +goose Down
DROP INDEX workspaces_build_id;
