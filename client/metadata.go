package client

import "github.com/coder/agentstatsd/client/internal/outbox"

// Metadata is the value of one metadata key. White space around the value and the error
// is not sent.
type Metadata struct {
	// Key is the name of the entry, at most 1024 bytes of UTF-8.
	Key string
	// Value is at most 2048 bytes; the service cuts a longer one.
	Value string
	// Error is why there is no value, at most 2048 bytes; empty: there is one.
	Error string
}

// notifyDurable calls OnDurable with what became durable.
func (a *Agent) notifyDurable(stored []outbox.Metadata) {
	if a.opts.OnDurable == nil || len(stored) == 0 {
		return
	}
	entries := make([]Metadata, len(stored))
	for i, m := range stored {
		entries[i] = Metadata(m)
	}
	a.opts.OnDurable(entries)
}
