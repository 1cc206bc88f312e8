package adminapi

import (
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// A shortage of descriptors is a warning while it lasts, and for an hour after it. A
// failure for another reason is none.
func TestShortageOfDescriptors(t *testing.T) {
	metrics := func(open, failed, other float64) gathered {
		gauge := func(v float64) *dto.MetricFamily {
			return &dto.MetricFamily{Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: &v}}}}
		}
		failures := func(listener, reason string, n float64) *dto.Metric {
			return &dto.Metric{
				Label:   []*dto.LabelPair{{Name: proto.String("listener"), Value: &listener}, {Name: proto.String("reason"), Value: &reason}},
				Counter: &dto.Counter{Value: &n},
			}
		}
		return gathered{
			"process_open_fds": gauge(open), "process_max_fds": gauge(1000),
			"agentstatsd_accept_errors_total": {Metric: []*dto.Metric{
				failures("prometheus", "other", other), failures("prometheus", "descriptors", failed), failures("grpc", "descriptors", 0),
			}},
		}
	}
	var s shortages
	now := time.Unix(1_000_000, 0)
	look := func(after time.Duration, g gathered) []string {
		now = now.Add(after)
		s.add(now, g)
		return s.warnings(now, g)
	}
	require.Empty(t, look(0, gathered{}), "nothing is known")
	require.Empty(t, look(time.Second, metrics(899, 0, 7)))
	nearly := look(time.Second, metrics(900, 0, 7))
	require.Len(t, nearly, 1)
	require.Contains(t, nearly[0], "descriptors: 900 of 1000 are used: ")
	const failed = "descriptors: the listener prometheus could not accept connections, 5 times since the start, the last at 1970-01-12T13:46:43Z, as the process may open 1000 files: "
	lasts := look(time.Second, metrics(1000, 5, 7))
	require.Len(t, lasts, 2)
	require.Contains(t, lasts[1], failed)
	require.Less(t, len(lasts[1]), maxTextBytes, "it is not cut")
	over := look(time.Hour-time.Second, metrics(20, 5, 7))
	require.Len(t, over, 1)
	require.Contains(t, over[0], failed)
	require.Empty(t, look(time.Second, metrics(20, 5, 8)), "it is an hour ago")
	require.Len(t, look(time.Second, metrics(20, 6, 8)), 1, "it is there again")
}
