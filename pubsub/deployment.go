package pubsub

import (
	"context"
	"encoding/base64"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
)

// Deployment is an Engine that carries the messages of one deployment over an
// engine whose server others use, too. The deployment's id is part of each
// channel's name, and stands before each payload. Messages of another deployment
// are counted and discarded.
//
// Its limits are below those of the engine: a channel's name has at most
// MaxDeploymentChannel bytes, a payload MaxDeploymentPayload.
type Deployment struct {
	engine  Engine
	metrics *deploymentMetrics

	id atomic.Pointer[string] // written under switchMu

	// switchMu is locked while subscriptions begin, end, and move to another id.
	switchMu      sync.Mutex
	subscriptions map[*deploymentSubscription]struct{}
}

const (
	// MaxDeploymentChannel is in bytes.
	MaxDeploymentChannel = MaxChannel - idText - 1
	// MaxDeploymentPayload is in bytes.
	MaxDeploymentPayload = MaxPayload - idText
)

// deploymentSubscription is one subscription over all ids that the deployment has.
type deploymentSubscription struct {
	channel string
	cancel  func() // of the engine; Deployment.switchMu guards it

	callMu sync.Mutex // of f
	f      func(payload []byte)
}

func (s *deploymentSubscription) call(payload []byte) {
	s.callMu.Lock()
	defer s.callMu.Unlock()
	s.f(payload)
}

// NewDeployment returns the engine of a deployment over that of a server. Run of the
// latter is part of its own.
func NewDeployment(engine Engine, id uuid.UUID, reg prometheus.Registerer) (*Deployment, error) {
	m, err := newDeploymentMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("pubsub: %w", err)
	}
	d := &Deployment{
		engine:        engine,
		metrics:       m,
		subscriptions: make(map[*deploymentSubscription]struct{}),
	}
	d.id.Store(deploymentText(id))
	return d, nil
}

// deploymentText is an id as a part of channels: letters, digits, "_" and "-".
func deploymentText(id uuid.UUID) *string {
	text := base64.RawURLEncoding.EncodeToString(id[:])
	return &text
}

// ID returns that of the deployment.
func (d *Deployment) ID() uuid.UUID {
	raw, _ := base64.RawURLEncoding.DecodeString(*d.id.Load()) // as it was encoded
	return uuid.UUID(raw)
}

// Run is as in Engine.
func (d *Deployment) Run(ctx context.Context) error { return d.engine.Run(ctx) }

// Connected is as in Engine.
func (d *Deployment) Connected() error { return d.engine.Connected() }

// Publish is as in PubSub.
func (d *Deployment) Publish(ctx context.Context, channel string, payload []byte) error {
	if len(channel) == 0 || len(channel) > MaxDeploymentChannel {
		return fmt.Errorf("publish: channel name %.64q has %d bytes, not 1 to %d", channel, len(channel), MaxDeploymentChannel)
	}
	if len(payload) == 0 || len(payload) > MaxDeploymentPayload {
		return fmt.Errorf("publish to %q: payload has %d bytes, not 1 to %d", channel, len(payload), MaxDeploymentPayload)
	}
	id := *d.id.Load()
	return d.engine.Publish(ctx, id+"_"+channel, append([]byte(id), payload...))
}

// Subscribe is as in PubSub. f must not call it, either.
func (d *Deployment) Subscribe(channel string, f func(payload []byte)) (cancel func(), err error) {
	if len(channel) == 0 || len(channel) > MaxDeploymentChannel {
		return nil, fmt.Errorf("subscribe: channel name %.64q has %d bytes, not 1 to %d", channel, len(channel), MaxDeploymentChannel)
	}
	s := &deploymentSubscription{channel: channel, f: f}
	d.switchMu.Lock()
	defer d.switchMu.Unlock()
	if s.cancel, err = d.subscribeLocked(s); err != nil {
		return nil, err
	}
	d.subscriptions[s] = struct{}{}
	return sync.OnceFunc(func() {
		d.switchMu.Lock()
		delete(d.subscriptions, s)
		end := s.cancel
		d.switchMu.Unlock()
		end()
	}), nil
}

func (d *Deployment) subscribeLocked(s *deploymentSubscription) (cancel func(), err error) {
	id := *d.id.Load()
	return d.engine.Subscribe(id+"_"+s.channel, func(payload []byte) {
		switch {
		case payload == nil:
			s.call(nil)
		case len(payload) <= len(id):
			d.metrics.malformed.Inc()
		case string(payload[:len(id)]) != id:
			d.metrics.foreign.Inc()
		default:
			s.call(payload[len(id):])
		}
	})
}

// Switch makes id that of the deployment. Each subscriber is notified that it may
// have missed something: messages of processes that have not switched yet do not
// arrive. After an error Switch can be called again.
func (d *Deployment) Switch(id uuid.UUID) error {
	text := deploymentText(id)
	d.switchMu.Lock()
	defer d.switchMu.Unlock()
	before := d.id.Load()
	if *text == *before {
		return nil
	}
	d.id.Store(text)
	moved := make(map[*deploymentSubscription]func(), len(d.subscriptions))
	for s := range d.subscriptions {
		cancel, err := d.subscribeLocked(s)
		if err != nil {
			for _, undo := range moved {
				undo()
			}
			d.id.Store(before)
			return fmt.Errorf("switch deployment: %w", err)
		}
		moved[s] = cancel
	}
	for s, cancel := range moved {
		s.cancel()
		s.cancel = cancel
		s.call(nil)
	}
	return nil
}
