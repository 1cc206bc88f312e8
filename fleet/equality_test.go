package fleet

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/aggregator"
	"github.com/coder/agentstatsd/fleet/internal/families"
	"github.com/coder/agentstatsd/fleet/internal/kept"
)

// A registration that differs in any field is another one: what equality forgets is
// not stored when coderd changes it.
func TestEqualRegistrationForgetsNoField(t *testing.T) {
	whole := func() *agent.Registration {
		var r agent.Registration
		fill(t, reflect.ValueOf(&r).Elem())
		return &r
	}
	a := whole()
	require.True(t, a.Equal(whole()))
	texts := kept.NewTexts()
	inMemory := texts.Registration(a, texts.Workspace(&a.Workspace))
	require.True(t, inMemory.Equal(a))
	// The store gives the incarnation; nobody registers one.
	ignored := map[string]bool{"Incarnation": true}
	checked := 0
	eachField(t, "", func() reflect.Value { return reflect.ValueOf(whole()).Elem() }, func(name string, root, field reflect.Value) {
		if ignored[name] {
			return
		}
		checked++
		change(t, field)
		b := root.Addr().Interface().(*agent.Registration)
		require.False(t, a.Equal(b), "Registration.Equal forgets %s", name)
		require.False(t, b.Equal(a), "Registration.Equal forgets %s", name)
		require.Equal(t, name == "ID", inMemory.Equal(b), "what is kept forgets %s", name) // the entry has the ID
	})
	require.Greater(t, checked, 20)
}

// TestEqualIdentityForgetsNoField is the same of what series are labelled by.
func TestEqualIdentityForgetsNoField(t *testing.T) {
	whole := func() reflect.Value {
		v := reflect.New(reflect.TypeFor[agent.Identity]()).Elem()
		fill(t, v)
		return v
	}
	a := whole().Interface().(agent.Identity)
	require.True(t, a.Equal(whole().Interface().(agent.Identity)))
	eachField(t, "", whole, func(name string, root, field reflect.Value) {
		change(t, field)
		require.False(t, a.Equal(root.Interface().(agent.Identity)), "Identity.Equal forgets %s", name)
	})
}

// TestIdentityIsWhole fails for a label that no registration gives a value.
func TestIdentityIsWhole(t *testing.T) {
	var r agent.Registration
	fill(t, reflect.ValueOf(&r).Elem())
	ident := reflect.ValueOf(r.Identity())
	for i := range ident.NumField() {
		require.False(t, ident.Field(i).IsZero(), "Identity forgets %s", ident.Type().Field(i).Name)
	}
}

// Each text of a registration, and each item of a list, counts towards its size.
func TestRegistrationBytesForgetNoText(t *testing.T) {
	whole := func() reflect.Value {
		v := reflect.New(reflect.TypeFor[agent.Registration]()).Elem()
		fill(t, v)
		return v
	}
	size := func(v reflect.Value) int64 {
		r := v.Addr().Interface().(*agent.Registration)
		change := kept.NewTexts().Change()
		change.AddRegistration(r)
		change.AddWorkspace(&r.Workspace)
		return change.Bytes()
	}
	least := size(whole())
	eachField(t, "", whole, func(name string, root, field reflect.Value) {
		switch {
		case strings.HasSuffix(name, " (length)"):
		case field.Kind() == reflect.String:
			field.SetString(field.String() + "longer")
		default:
			return
		}
		require.Greater(t, size(root), least, "the size forgets %s", name)
	})
}

// eachField calls f for each field of the structs that newRoot returns, and of the
// structs and slices within, each time with a new root.
func eachField(t *testing.T, name string, newRoot func() reflect.Value, f func(name string, root, field reflect.Value)) {
	var walk func(name string, of func(root reflect.Value) reflect.Value)
	walk = func(name string, of func(root reflect.Value) reflect.Value) {
		v := of(newRoot())
		switch {
		case v.Type() == reflect.TypeFor[time.Time]():
		case v.Kind() == reflect.Struct:
			for i := range v.NumField() {
				walk(name+"."+v.Type().Field(i).Name, func(root reflect.Value) reflect.Value { return of(root).Field(i) })
			}
			return
		case v.Kind() == reflect.Slice:
			walk(name+"[0]", func(root reflect.Value) reflect.Value { return of(root).Index(0) })
			root := newRoot()
			field := of(root)
			field.Set(reflect.Append(field, field.Index(0)))
			f(name[1:]+" (length)", root, reflect.ValueOf(new(bool)).Elem())
			return
		}
		root := newRoot()
		f(name[1:], root, of(root))
	}
	walk(name, func(root reflect.Value) reflect.Value { return root })
}

// fill gives v, and what is within it, values that are not zero.
func fill(t *testing.T, v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case v.Kind() == reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	default:
		change(t, v)
	}
}

// change gives v another value.
func change(t *testing.T, v reflect.Value) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(v.Interface().(time.Time).Add(time.Nanosecond)))
	case v.Kind() == reflect.String:
		v.SetString(v.String() + "x")
	case v.Kind() == reflect.Bool:
		v.SetBool(!v.Bool())
	case v.CanInt():
		v.SetInt(v.Int() + 1)
	case v.CanUint():
		v.SetUint(v.Uint() + 1)
	case v.Kind() == reflect.Array:
		change(t, v.Index(v.Len()-1))
	default:
		t.Fatalf("a field of kind %v: say how to change it", v.Kind())
	}
}

// Each series that the fleet computes is of a family that the aggregator serves.
func TestStateFamiliesAreServed(t *testing.T) {
	series, err := aggregator.New(aggregator.Options{WorkspaceInfo: true}, prometheus.NewRegistry())
	require.NoError(t, err)
	var r agent.Registration
	fill(t, reflect.ValueOf(&r).Elem())
	s := agent.State{Network: agent.Network{NodeID: 1, Regions: []agent.Region{{Name: "frankfurt", Latency: time.Millisecond}}}}
	var b families.Buffer
	all := append(b.Agent(&r, &s, agent.StatusConnected), b.Workspace(&r.Workspace, 1, true, true)...)
	names := map[string]bool{}
	for _, one := range all {
		names[one.Family] = true
	}
	require.Len(t, names, 5)
	require.NoError(t, series.SetStates([]agent.KeySeries{{Key: agent.SeriesKey{ID: r.ID}, Series: all}}))
}
