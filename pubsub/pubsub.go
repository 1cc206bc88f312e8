// Package pubsub carries small messages between the replicas of this service and to
// their watchers. Its engines are Memory, within one process, Postgres, by
// PostgreSQL's NOTIFY, and NATS. Messages are hints to read the database again.
// Delivery is not promised, but subscribers are notified of a loss.
package pubsub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Limits of every engine, so that what works in memory works on all.
const (
	// MaxPayload is in bytes. PostgreSQL takes less than 8000 in a NOTIFY.
	MaxPayload = 7999
	// MaxChannel is the length of a channel's name in bytes: that of an
	// identifier in PostgreSQL.
	MaxChannel = 63
)

// PubSub is a messaging engine. A channel's name is 1 to MaxChannel ASCII
// letters, digits, "_" and "-": what is one token of a subject in NATS. A
// payload is 1 to MaxPayload bytes of valid UTF-8 without NUL: what PostgreSQL
// takes as text.
type PubSub interface {
	// Publish sends payload to the subscribers that channel has now, those of
	// the same process too. It does not wait for them, and keeps no reference
	// to payload. It returns when the engine's server has the message; an error
	// means that it may not have.
	Publish(ctx context.Context, channel string, payload []byte) error
	// Subscribe calls f for each message on channel that is published after it
	// returned. Calls come one at a time, in the order in which each publisher sent
	// the messages. f(nil) means that messages may have been missed until now.
	// Without a connection it returns at once, and f(nil) follows when there is
	// one. f must neither change nor keep payload, nor call cancel. After cancel
	// has returned f is not called; it waits for a call under way and is safe to
	// repeat.
	Subscribe(channel string, f func(payload []byte)) (cancel func(), err error)
}

// Engine is a PubSub that runs. Memory, Postgres and NATS are engines.
type Engine interface {
	PubSub
	// Run connects and keeps connected until ctx is cancelled; then it returns
	// nil and leaves nothing running. To be called once.
	Run(ctx context.Context) error
	// Connected returns nil while messages can arrive, otherwise why not.
	Connected() error
}

// errNotRunning is why nothing works before and after Run.
var errNotRunning = errors.New("the pubsub is not running")

// checkMessage returns why no engine publishes this.
func checkMessage(ctx context.Context, channel string, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish to %.64q: %w", channel, err)
	}
	if err := checkChannel(channel); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := checkPayload(payload); err != nil {
		return fmt.Errorf("publish to %q: %w", channel, err)
	}
	return nil
}

const channelCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

func checkChannel(channel string) error {
	if len(channel) == 0 || len(channel) > MaxChannel {
		return fmt.Errorf("channel name %.64q has %d bytes, not 1 to %d", channel, len(channel), MaxChannel)
	}
	if strings.Trim(channel, channelCharacters) != "" {
		return fmt.Errorf("channel name %q has other characters than letters, digits, _ and -", channel)
	}
	return nil
}

func checkPayload(payload []byte) error {
	switch {
	case len(payload) == 0 || len(payload) > MaxPayload:
		return fmt.Errorf("payload has %d bytes, not 1 to %d", len(payload), MaxPayload)
	case bytes.IndexByte(payload, 0) >= 0:
		return errors.New("payload has a NUL")
	case !utf8.Valid(payload):
		return errors.New("payload is not valid UTF-8")
	}
	return nil
}

// fromServer returns payload as subscribers get it. What no engine could have
// published has an unknown meaning: then it is nil, as for a message that was
// missed.
func fromServer(payload []byte) []byte {
	if checkPayload(payload) != nil {
		return nil
	}
	return payload
}

var (
	errURLMalformed  = errors.New("the URL is malformed (special characters of user and password must be escaped by %)")
	errURLBehindHost = errors.New("the URL has an @ behind its host (special characters of user and password must be escaped by %)")
)

// checkURL returns an error unless text is a URL of one of schemes whose parts
// are certain. The error has nothing of text, as a password with a character
// that is not escaped can be taken for any other part.
func checkURL(text string, schemes ...string) error {
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" {
		return errURLMalformed
	}
	for _, scheme := range schemes {
		if u.Scheme == scheme {
			if u.Host == "" && u.RawQuery == "" {
				return errors.New("the URL names no host")
			}
			if strings.Contains(u.Path, "@") {
				return errURLBehindHost
			}
			return nil
		}
	}
	return fmt.Errorf("the URL begins with none of %s://", strings.Join(schemes, "://, "))
}
