// Package pubsub carries small messages between the replicas of this service
// and to their watchers: within one process for now. Messages are hints to
// read the database again; delivery is not promised, but a loss is told.
package pubsub

import (
	"context"
	"fmt"
)

// Limits of every engine, so that what works in memory works on all.
const (
	// MaxPayload is in bytes. PostgreSQL takes less than 8000 in a NOTIFY.
	MaxPayload = 7999
	// MaxChannel is the length of a channel's name in bytes: that of an
	// identifier in PostgreSQL.
	MaxChannel = 63
)

// PubSub is a messaging engine. Memory is one.
type PubSub interface {
	// Publish sends payload, 1 to MaxPayload bytes, to the subscribers that
	// channel has now. It does not wait for them, and keeps no reference to
	// payload.
	Publish(ctx context.Context, channel string, payload []byte) error
	// Subscribe calls f for each message on channel, one call at a time, in
	// the order in which each publisher sent them. f(nil) says that messages
	// may have been missed. f must neither change nor keep payload, nor call
	// cancel. After cancel has returned f is not called; it waits for a call
	// under way and is safe to repeat.
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

func checkChannel(channel string) error {
	if len(channel) == 0 || len(channel) > MaxChannel {
		return fmt.Errorf("channel name %.64q has %d bytes, not 1 to %d", channel, len(channel), MaxChannel)
	}
	return nil
}

func checkPayload(payload []byte) error {
	if len(payload) == 0 || len(payload) > MaxPayload {
		return fmt.Errorf("payload has %d bytes, not 1 to %d", len(payload), MaxPayload)
	}
	return nil
}
