package durations

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// What was a template's is forgotten as a whole, after Retention and not before.
func TestRemovedTemplatesAreForgotten(t *testing.T) {
	h, now := NewHistogram(), time.Now()
	gone, kept := &agent.Workspace{Organization: "acme", Template: agent.Template{Name: "go"}}, &agent.Workspace{Organization: "acme"}
	for _, status := range []string{StatusSuccess, StatusError} {
		h.Observe(gone, status, 1, now)
	}
	h.Observe(kept, StatusTimeout, 1, now)
	registered := func(template Template) bool { return template == TemplateOf(kept) }
	h.RemoveStale(registered, now.Add(Retention-1))
	require.Equal(t, 3, testutil.CollectAndCount(h))
	h.RemoveStale(registered, now.Add(Retention))
	require.Equal(t, 1, testutil.CollectAndCount(h))
	require.Len(t, h.seen, 1)
}
