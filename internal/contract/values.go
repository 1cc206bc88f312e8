// Package contract converts between the messages of the wire contract and the values of
// package agent: what both gRPC edges convert, and networks.
package contract

import (
	"cmp"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// MaxApps is how many apps an agent may have.
const MaxApps = 256

// LifecycleStates are named as the label lifecycle_state.
var LifecycleStates = map[agentstatsv1.Lifecycle_State]agent.LifecycleState{
	agentstatsv1.Lifecycle_STATE_CREATED:          agent.LifecycleCreated,
	agentstatsv1.Lifecycle_STATE_STARTING:         agent.LifecycleStarting,
	agentstatsv1.Lifecycle_STATE_START_TIMEOUT:    agent.LifecycleStartTimeout,
	agentstatsv1.Lifecycle_STATE_START_ERROR:      agent.LifecycleStartError,
	agentstatsv1.Lifecycle_STATE_READY:            agent.LifecycleReady,
	agentstatsv1.Lifecycle_STATE_SHUTTING_DOWN:    agent.LifecycleShuttingDown,
	agentstatsv1.Lifecycle_STATE_SHUTDOWN_TIMEOUT: agent.LifecycleShutdownTimeout,
	agentstatsv1.Lifecycle_STATE_SHUTDOWN_ERROR:   agent.LifecycleShutdownError,
	agentstatsv1.Lifecycle_STATE_OFF:              agent.LifecycleOff,
}

// AppHealths are named as the label health.
var AppHealths = map[agentstatsv1.AppHealth]agent.AppHealth{
	agentstatsv1.AppHealth_APP_HEALTH_DISABLED:     agent.AppHealthDisabled,
	agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING: agent.AppHealthInitializing,
	agentstatsv1.AppHealth_APP_HEALTH_HEALTHY:      agent.AppHealthHealthy,
	agentstatsv1.AppHealth_APP_HEALTH_UNHEALTHY:    agent.AppHealthUnhealthy,
}

// OptionalID returns the bytes of an id; nil: it is zero.
func OptionalID(id *agent.ID) []byte {
	if *id == (agent.ID{}) {
		return nil
	}
	return id[:]
}

// NumberOf returns the number of an enum that stands for the value; 0: none does.
func NumberOf[K cmp.Ordered, V comparable](numbers map[K]V, value V) K {
	var key K
	for k, v := range numbers {
		if v == value {
			key = k
		}
	}
	return key
}

// Times are kept in nanoseconds since 1970.
var minTime, maxTime = time.Unix(0, 0), time.Unix(0, 1<<63-1)

// TimeOf returns the time. It returns the zero time for one that is absent, or zero in
// protobuf (1970) or in Go (the year 1).
func TimeOf(t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil || (t.GetSeconds() == 0 && t.GetNanos() == 0) || t.AsTime().IsZero() {
		return time.Time{}, nil
	}
	at := t.AsTime()
	if t.CheckValid() != nil || at.Before(minTime) || at.After(maxTime) {
		return time.Time{}, fmt.Errorf("want a time from 1970 to 2262, got %d s and %d ns since 1970", t.GetSeconds(), t.GetNanos())
	}
	return at, nil
}
