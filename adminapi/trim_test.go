package adminapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// longStatus has all that a status can have, with names as long as they can be, and bytes
// that are no text.
func longStatus() *agentstatsv1.ReplicaStatus {
	long := strings.Repeat("\xffé", 500)
	r := &agentstatsv1.ReplicaStatus{Name: long, Url: long, Version: long, Revision: long, Durability: &agentstatsv1.Durability{Received: 1e15}}
	for range 90 {
		used := 1e15
		r.Limits = append(r.Limits, &agentstatsv1.Limit{Name: strings.Repeat("l", 40), Limit: 1e15, Used: &used})
	}
	for range 10 {
		r.Components = append(r.Components, &agentstatsv1.Component{Name: "replica", Reason: long})
		r.Places = append(r.Places, &agentstatsv1.Place{Name: "coderd_token_file", Value: long})
	}
	for range 100 {
		r.Warnings = append(r.Warnings, long)
	}
	for n := range 20 {
		r.Refused = append(r.Refused, &agentstatsv1.NamedCount{Name: long, Count: float64(100 - n)})
	}
	for i, by := range []string{"family", "template", "owner"} {
		g := &agentstatsv1.CardinalityGroup{By: by}
		for n := range 20 {
			g.Rows = append(g.Rows, &agentstatsv1.CardinalityRow{Name: fmt.Sprint(n, long), Series: float64(1000*(i+1) - n)})
		}
		r.Cardinality = append(r.Cardinality, g)
	}
	return r
}

// Whatever a status has, it can be stored, and what matters most is in it.
func TestTrim(t *testing.T) {
	r := longStatus()
	given := r.Warnings
	leftOut := trim(r, maxStatusBytes)
	text, err := proto.Marshal(r)
	require.NoError(t, err)
	require.LessOrEqual(t, len(text), maxStatusBytes)
	require.Greater(t, len(text), maxStatusBytes-2*maxTextBytes, "no more than has to be is left out")
	require.Len(t, r.GetLimits(), 90)
	require.Len(t, r.GetComponents(), 10)
	require.Len(t, r.GetPlaces(), 10)
	require.Len(t, r.GetRefused(), 20)
	require.Len(t, r.GetWarnings(), maxWarnings)
	require.LessOrEqual(t, len(r.GetName()), maxTextBytes)
	rows := 0
	for _, g := range r.GetCardinality() {
		rows += len(g.GetRows())
	}
	require.Equal(t, 70+60-rows, leftOut)
	require.Empty(t, r.GetCardinality()[0].GetRows(), "the smallest")
	require.Equal(t, longStatus().GetWarnings()[:1], given[:1], "what was given is the caller's")

	// With less room the rest goes, in order, but for what says how the replica is.
	r = longStatus()
	trim(r, 1)
	require.Empty(t, r.GetRefused())
	require.Empty(t, r.GetWarnings())
	require.Empty(t, r.GetPlaces())
	require.Len(t, r.GetComponents(), 10)
	require.Less(t, proto.Size(r), maxStatusBytes/2)
}

// One that fits stays as it is.
func TestTrimLeavesWhatFits(t *testing.T) {
	r := &agentstatsv1.ReplicaStatus{Name: "a", Warnings: []string{"b"}, Places: []*agentstatsv1.Place{{Name: "c", Value: "d"}}}
	before := proto.CloneOf(r)
	require.Zero(t, trim(r, maxStatusBytes))
	require.True(t, proto.Equal(before, r))
}
