package agentapi

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/coder/agentstatsd/pubsub"
)

// BusFault is what a FaultyBus does.
type BusFault int

// The faults of a bus.
const (
	BusWorks   BusFault = iota
	BusLoses            // every third message
	BusRepeats          // each message, and again after ten others
	BusSilent           // loses all
	BusFails            // and says so
)

// FaultyBus is the bus of several replicas in one process, with faults.
type FaultyBus struct {
	*pubsub.Memory

	mu    sync.Mutex
	fault BusFault
	n     int
	kept  []keptMessage
}

type keptMessage struct {
	channel string
	payload []byte
}

// Set sets the fault.
func (b *FaultyBus) Set(f BusFault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = f
}

// Sent returns how many messages were published.
func (b *FaultyBus) Sent() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

// Publish implements Bus.
func (b *FaultyBus) Publish(ctx context.Context, channel string, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	switch b.fault {
	case BusWorks:
	case BusLoses:
		if b.n%3 == 0 {
			return nil
		}
	case BusRepeats:
		b.kept = append(b.kept, keptMessage{channel, slices.Clone(payload)})
		if len(b.kept) > 10 {
			if err := b.Memory.Publish(ctx, b.kept[0].channel, b.kept[0].payload); err != nil {
				return err
			}
			b.kept = b.kept[1:]
		}
		if err := b.Memory.Publish(ctx, channel, payload); err != nil {
			return err
		}
	case BusSilent:
		return nil
	case BusFails:
		return errors.New("the bus is down")
	}
	return b.Memory.Publish(ctx, channel, payload)
}
