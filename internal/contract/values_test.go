package contract

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestTimeThatIsAbsent(t *testing.T) {
	for name, at := range map[string]*timestamppb.Timestamp{
		"absent": nil, "the zero of protobuf": {}, "the zero of Go": timestamppb.New(time.Time{}),
	} {
		got, err := TimeOf(at)
		require.NoError(t, err, name)
		require.True(t, got.IsZero(), name)
	}
}

func TestEnumsAreWhole(t *testing.T) {
	require.Len(t, LifecycleStates, len(agentstatsv1.Lifecycle_State_name)-1)
	require.Len(t, AppHealths, len(agentstatsv1.AppHealth_name)-1)
	for number, state := range LifecycleStates {
		require.Equal(t, "STATE_"+strings.ToUpper(string(state)), number.String())
	}
	for number, health := range AppHealths {
		require.Equal(t, "APP_HEALTH_"+strings.ToUpper(string(health)), number.String())
	}
}
