package coderdapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/contract"
)

// refusedLineInterval is the least time between two lines about what is refused of one
// stream of pushes.
const refusedLineInterval = time.Minute

// pushRefusals are what the log has last of what is refused of a stream of pushes.
type pushRefusals struct {
	reasons string
	at      time.Time // zero: never
}

// reasonOwned is the reason of families that the service has itself, such as those of its
// process. Each coderd pushes some, so they are not logged.
const reasonOwned = "owned_by_service"

// logRefused logs what is refused of a snapshot, if that differs from what was logged last,
// and that is a minute ago. Coderd pushes the same again and again.
func (p *push) logRefused(all []agent.PushRefusal) {
	var refused []agent.PushRefusal
	for i := range all {
		if all[i].Reason != reasonOwned {
			refused = append(refused, all[i])
		}
	}
	counts := make(map[string]int)
	for i := range refused {
		counts[refused[i].Reason]++
	}
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s: %d", reason, counts[reason]))
	}
	reasons, now := strings.Join(parts, ", "), time.Now()
	if reasons == p.logged.reasons || !p.logged.at.IsZero() && now.Sub(p.logged.at) < refusedLineInterval {
		return
	}
	p.logged = pushRefusals{reasons, now}
	log := p.service.log.With("replica", p.snapshot.Replica)
	if len(refused) == 0 {
		log.Info("all families of a coderd are taken in again")
		return
	}
	log.Warn("families of a coderd are refused", "families", len(refused), "reasons", reasons,
		"first", agent.ShortenText(refused[0].Name, contract.MaxNameBytes), "problem", agent.ShortenText(refused[0].Message, contract.MaxRefusalText))
}
