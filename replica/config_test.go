package replica

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

func TestDifferences(t *testing.T) {
	other := func(name, config string) agent.Replica {
		return agent.Replica{ID: agent.ID{1}, Name: name, Config: config}
	}
	for _, c := range []struct {
		name, own string
		others    []agent.Replica
		want      []string
	}{
		{"alone", `{"a":"1"}`, nil, nil},
		{"alike", `{"a":"1"}`, []agent.Replica{other("x", `{"a":"1"}`)}, nil},
		{"another value", `{"a":"1","b":"2"}`, []agent.Replica{other("x", `{"a":"3","b":"2"}`)}, []string{"a is 1 here and 3 on x"}},
		{"a default", `{"a":"1"}`, []agent.Replica{other("", `{}`)}, []string{"a is 1 here and the default on " + agent.ID{1}.String()}},
		{"a default here", `{}`, []agent.Replica{other("x", `{"a":"1"}`)}, []string{"a is the default here and 1 on x"}},
		{"of an older version", `{"a":"1"}`, []agent.Replica{other("x", "")}, nil},
		{"that cannot be read", `{"a":"1"}`, []agent.Replica{other("x", "{")}, nil},
		{"not said here", "", []agent.Replica{other("x", `{"a":"1"}`)}, nil},
		{"several", `{"a":"1"}`, []agent.Replica{other("y", `{"a":"2"}`), other("x", `{"a":"3"}`)}, []string{"a is 1 here and 2 on y", "a is 1 here and 3 on x"}},
	} {
		require.Equal(t, c.want, differences(c.own, c.others), c.name)
	}
	many := "{"
	for i := range 100 {
		many += fmt.Sprintf(`"o%d":"1",`, i)
	}
	found := differences(`{}`, []agent.Replica{other("x", many+`"z":"1"}`)})
	require.Len(t, found, maxDifferences+1)
	require.Equal(t, "and 81 more", found[maxDifferences])
}
