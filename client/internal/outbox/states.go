package outbox

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxApps bounds the apps whose health is kept: as many as a registration
// may have.
const maxApps = 256

// latest is the newest value of one thing. It is sent again in each session.
type latest[T any] struct {
	value T
	isSet bool
	given time.Time // to the outbox
	// sequence of the request that carried it in this session; 0: none.
	sequence int64
	acked    bool
}

func (l *latest[T]) put(v T, now time.Time) {
	*l = latest[T]{value: v, isSet: true, given: now}
}

func (l *latest[T]) unsent() bool {
	return l.isSet && l.sequence == 0
}

func (l *latest[T]) ack(sequence int64) {
	if l.sequence > 0 && l.sequence <= sequence {
		l.acked = true
	}
}

// reset has the value sent again, unless it is acked and that is to be kept.
func (l *latest[T]) reset(keepAcked bool) {
	if !keepAcked || !l.acked {
		l.sequence, l.acked = 0, false
	}
}

func (l *latest[T]) idle() bool {
	return !l.isSet || l.acked
}

type lifecycle struct {
	state     agentstatsv1.Lifecycle_State
	changedAt time.Time
}

// app is the health of one app.
type app struct {
	id     uuid.UUID
	health latest[agentstatsv1.AppHealth]
}

// PutLifecycle adds the agent's state, and since when it has it.
func (o *Outbox) PutLifecycle(state agentstatsv1.Lifecycle_State, changedAt, now time.Time) {
	l, known := lifecycle{state: state, changedAt: changedAt}, &o.lifecycle
	if again := known.isSet && known.value.state == l.state && known.value.changedAt.Equal(l.changedAt); !again || !o.IsRelay {
		known.put(l, now)
	}
}

// PutNetwork adds the agent's view of the network, unless it is that of before. Of a
// relay it adds that, too: the agent may have said another one elsewhere meanwhile. It
// owns network from then on.
func (o *Outbox) PutNetwork(network *agentstatsv1.Network, now time.Time) {
	if o.IsRelay || !o.network.isSet || !proto.Equal(o.network.value, network) {
		o.network.put(network, now)
	}
}

// PutGoodbye adds the goodbye, which is sent when nothing else is unsent.
func (o *Outbox) PutGoodbye() { o.goodbye.put(struct{}{}, time.Time{}) }

// HasGoodbye reports whether a goodbye was added.
func (o *Outbox) HasGoodbye() bool { return o.goodbye.isSet }

// GoodbyeSent reports whether this session has sent the goodbye.
func (o *Outbox) GoodbyeSent() bool { return o.goodbye.sequence > 0 }

// AckGoodbye acks the goodbye, which was sent.
func (o *Outbox) AckGoodbye() { o.goodbye.acked = true }

// PutAppHealth adds the health of an app, as PutNetwork does. It returns an error if
// there are too many.
func (o *Outbox) PutAppHealth(id uuid.UUID, health agentstatsv1.AppHealth, now time.Time) error {
	i := slices.IndexFunc(o.apps, func(a app) bool { return a.id == id })
	if i >= 0 && o.apps[i].health.value == health && !o.IsRelay {
		return nil
	}
	if i < 0 {
		if len(o.apps) >= maxApps {
			o.Counts.Refused++
			return fmt.Errorf("health of app %s: there are %d apps, at most %d may be", id, len(o.apps), maxApps)
		}
		i = len(o.apps)
		o.apps = append(o.apps, app{id: id})
	}
	o.apps[i].health.put(health, now)
	return nil
}

func (o *Outbox) statesUnsent() bool {
	return o.lifecycle.unsent() || o.network.unsent() || o.appsUnsent()
}

func (o *Outbox) appsUnsent() bool {
	return slices.ContainsFunc(o.apps, func(a app) bool { return a.health.unsent() })
}

// addStates adds all states that were not sent.
func (o *Outbox) addStates(req *agentstatsv1.ConnectRequest) {
	if o.lifecycle.unsent() {
		o.lifecycle.sequence = req.GetSequence()
		req.Lifecycle = &agentstatsv1.Lifecycle{State: o.lifecycle.value.state}
		if !o.lifecycle.value.changedAt.IsZero() {
			req.Lifecycle.ChangedAt = timestamppb.New(o.lifecycle.value.changedAt)
		}
		if age := o.age(o.lifecycle.given); age > 0 {
			agesOf(req).Lifecycle = age
		}
	}
	if o.appsUnsent() {
		req.AppHealth = o.nextAppHealth(req)
	}
	if o.network.unsent() {
		o.network.sequence = req.GetSequence()
		req.Network = o.network.value
		if age := o.age(o.network.given); age > 0 {
			agesOf(req).Network = age
		}
	}
}

// age returns the time between the hand over of a value and the hello of the session, in
// microseconds; 0: it was handed over since, or this is no relay.
func (o *Outbox) age(given time.Time) int64 {
	if !o.IsRelay || !given.Before(o.helloAt) {
		return 0
	}
	return max(1, o.helloAt.Sub(given).Microseconds())
}

// agesOf returns the ages of the request, which it adds.
func agesOf(req *agentstatsv1.ConnectRequest) *agentstatsv1.Ages {
	if req.Ages == nil {
		req.Ages = &agentstatsv1.Ages{}
	}
	return req.Ages
}

// addMetadataAges adds the ages of a request's metadata, if there are any.
func (o *Outbox) addMetadataAges(req *agentstatsv1.ConnectRequest, given []time.Time) {
	for i, at := range given {
		if age := o.age(at); age > 0 {
			ages := agesOf(req)
			ages.Metadata = append(ages.GetMetadata(), make([]int64, i-len(ages.GetMetadata()))...)
			ages.Metadata = append(ages.GetMetadata(), age)
		}
	}
}

func hasStates(req *agentstatsv1.ConnectRequest) bool {
	return req.Lifecycle != nil || req.AppHealth != nil || req.Network != nil
}

// nextAppHealth returns the health of apps that was not sent. It adds its ages to the
// request.
func (o *Outbox) nextAppHealth(req *agentstatsv1.ConnectRequest) *agentstatsv1.AppHealthReport {
	report := &agentstatsv1.AppHealthReport{}
	for i := range o.apps {
		a := &o.apps[i]
		if a.health.unsent() {
			a.health.sequence = req.GetSequence()
			if age := o.age(a.health.given); age > 0 {
				ages := agesOf(req)
				ages.AppHealth = append(ages.GetAppHealth(), make([]int64, len(report.GetUpdates())-len(ages.GetAppHealth()))...)
				ages.AppHealth = append(ages.GetAppHealth(), age)
			}
			report.Updates = append(report.Updates, &agentstatsv1.AppHealthUpdate{Id: a.id[:], Health: a.health.value})
		}
	}
	return report
}

func (o *Outbox) pendingStates() int {
	n := 0
	for _, idle := range []bool{o.lifecycle.idle(), o.network.idle()} {
		if !idle {
			n++
		}
	}
	for i := range o.apps {
		if !o.apps[i].health.idle() {
			n++
		}
	}
	return n
}
