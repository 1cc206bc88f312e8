package replica

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coder/agentstatsd/agent"
)

const (
	// maxConfigBytes bounds what is stored of a configuration: all options, each with a
	// value.
	maxConfigBytes = 16 << 10
	// maxDifferences bounds the differences that are told apart.
	maxDifferences = 20
)

// SetConfig sets what this replica has of what all should have alike, by its names. The
// others compare it with theirs. Values are not secret.
func (r *Replicas) SetConfig(config map[string]string) error {
	text, err := json.Marshal(config) // in the order of the names
	if err != nil {
		return fmt.Errorf("encode the configuration for other replicas: %w", err)
	}
	if len(text) > maxConfigBytes {
		return fmt.Errorf("the configuration for other replicas takes %d bytes, at most %d are stored", len(text), maxConfigBytes)
	}
	r.mu.Lock()
	r.config = string(text)
	r.mu.Unlock()
	r.wakeRun()
	return nil
}

// Warnings returns what this replica has otherwise than others that live.
func (r *Replicas) Warnings() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.differences) == 0 {
		return nil
	}
	return []string{"replicas have different configurations: " + strings.Join(r.differences, "; ")}
}

// compareConfigs compares the configurations that the last heartbeat read. It logs when
// the differences have changed.
func (r *Replicas) compareConfigs(ctx context.Context) {
	r.mu.Lock()
	now := differences(r.config, r.others)
	changed := !slices.Equal(now, r.differences)
	r.differences = now
	r.mu.Unlock()
	switch {
	case !changed:
	case len(now) == 0:
		r.log.InfoContext(ctx, "replicas have the same configuration again")
	default:
		r.log.WarnContext(ctx, "replicas have different configurations", "differences", strings.Join(now, "; "))
	}
}

// countDifferences returns the number of differences.
func (r *Replicas) countDifferences() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.differences)
}

// differences returns what others have otherwise, in order, at most maxDifferences. Those
// of a version that does not say what it has are left out.
func differences(own string, others []agent.Replica) []string {
	if own == "" {
		return nil
	}
	var mine map[string]string
	if json.Unmarshal([]byte(own), &mine) != nil {
		return nil
	}
	var found []string
	for _, other := range others {
		var theirs map[string]string
		if other.Config == "" || other.Config == own || json.Unmarshal([]byte(other.Config), &theirs) != nil {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(merge(mine, theirs))) {
			if here, there := shown(mine, name), shown(theirs, name); here != there {
				found = append(found, fmt.Sprintf("%s is %s here and %s on %s", name, here, there, nameOf(other)))
			}
		}
	}
	slices.Sort(found)
	if len(found) > maxDifferences {
		found = append(found[:maxDifferences], fmt.Sprintf("and %d more", len(found)-maxDifferences))
	}
	return found
}

func merge(a, b map[string]string) map[string]string {
	all := maps.Clone(b)
	if all == nil {
		all = make(map[string]string)
	}
	maps.Copy(all, a)
	return all
}

// shown returns a value for people.
func shown(config map[string]string, name string) string {
	value, ok := config[name]
	if !ok {
		return "the default"
	}
	return agent.ShortenText(value, 100)
}

func nameOf(r agent.Replica) string {
	if r.Name == "" {
		return r.ID.String()
	}
	return r.Name
}
