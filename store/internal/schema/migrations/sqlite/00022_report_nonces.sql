-- +goose Up

-- nonce is that of the batch with the subscription's number: random, as an older
-- database gives a number again. refused and gone are the outcome of the writer's
-- newest write, whose answer can be lost.
ALTER TABLE report_subscriptions ADD COLUMN nonce INTEGER NOT NULL DEFAULT 0;
ALTER TABLE report_writers ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
ALTER TABLE report_writers ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE report_writers DROP COLUMN gone;
ALTER TABLE report_writers DROP COLUMN refused;
ALTER TABLE report_subscriptions DROP COLUMN nonce;
