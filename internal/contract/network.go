package contract

import (
	"fmt"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	maxRegions    = 128
	maxRegionName = 128
	// maxLatency to a region is the same as that of a report.
	maxLatency = agent.MaxLatencyMS * time.Millisecond
)

// NetworkOf converts the agent's view of the network. An error refuses all of it.
func NetworkOf(n *agentstatsv1.Network) (agent.Network, error) {
	network := agent.Network{NodeID: n.GetNodeId(), PreferredRegion: n.GetPreferredRegionId()}
	if network.PreferredRegion < 0 {
		return network, fmt.Errorf("network.preferred_region_id: want at least 0, got %d", network.PreferredRegion)
	}
	regions := n.GetRegions()
	if len(regions) > maxRegions {
		return network, fmt.Errorf("network.regions: want at most %d, got %d", maxRegions, len(regions))
	}
	seen := make(map[int64]struct{}, len(regions))
	for i, pb := range regions {
		region := agent.Region{ID: pb.GetId(), Name: strings.Clone(pb.GetName()), Latency: -1}
		if region.ID < 1 {
			return network, fmt.Errorf("network.regions[%d].id: want at least 1, got %d", i, region.ID)
		}
		if _, twice := seen[region.ID]; twice {
			return network, fmt.Errorf("network.regions[%d].id: want each region once, got %d again", i, region.ID)
		}
		seen[region.ID] = struct{}{}
		if problem := TextProblem(region.Name, 0, maxRegionName); problem != "" {
			return network, fmt.Errorf("network.regions[%d].name: %s", i, problem)
		}
		if region.Name == "" {
			region.Name = fmt.Sprintf("Unnamed %d", region.ID)
		}
		if latency := pb.GetLatency(); latency != nil {
			if latency.CheckValid() != nil || latency.AsDuration() < 0 || latency.AsDuration() > maxLatency {
				return network, fmt.Errorf("network.regions[%d].latency: want 0 s to %d s, got %d s and %d ns", i, maxLatency/time.Second, latency.GetSeconds(), latency.GetNanos())
			}
			region.Latency = latency.AsDuration()
		}
		network.Regions = append(network.Regions, region)
	}
	return network, nil
}
