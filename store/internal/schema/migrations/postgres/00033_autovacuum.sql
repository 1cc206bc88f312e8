-- +goose Up

-- What half of the rows get a new version each 10 s needs room in each page, or the new
-- versions go elsewhere, with new entries in the index. With 80 that were one in twenty
-- of the first minutes. Pages that are full already get room as their rows move.
--
-- Old versions are removed by whoever next writes to their page: a vacuum is left with
-- the entries of the index, and with noting where there is room. With a scale factor of
-- 0.5 it came too seldom for that, and the table grew by 2 % in ten minutes. None of these tables' plans depends on the values that an
-- analysis looks for, only on how many rows there are.
ALTER TABLE metadata SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.3, autovacuum_analyze_scale_factor = 1);
ALTER TABLE agent_states SET (autovacuum_analyze_scale_factor = 1);
ALTER TABLE sessions SET (autovacuum_analyze_scale_factor = 1);
ALTER TABLE report_sums SET (autovacuum_analyze_scale_factor = 1);

-- +goose Down
ALTER TABLE report_sums RESET (autovacuum_analyze_scale_factor);
ALTER TABLE sessions RESET (autovacuum_analyze_scale_factor);
ALTER TABLE agent_states RESET (autovacuum_analyze_scale_factor);
ALTER TABLE metadata SET (fillfactor = 80);
ALTER TABLE metadata RESET (autovacuum_vacuum_scale_factor, autovacuum_analyze_scale_factor);
