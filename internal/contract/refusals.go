package contract

import (
	"slices"
	"strings"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var refusalCodes = map[agent.RefusalKind]agentstatsv1.RefusalCode{
	agent.RefusedInvalid:    agentstatsv1.RefusalCode_REFUSAL_CODE_INVALID,
	agent.RefusedNotAllowed: agentstatsv1.RefusalCode_REFUSAL_CODE_NOT_ALLOWED,
	agent.RefusedLimit:      agentstatsv1.RefusalCode_REFUSAL_CODE_LIMIT,
	agent.RefusedStore:      agentstatsv1.RefusalCode_REFUSAL_CODE_STORE,
}

// OwnRefusals returns copies that do not reference the request, with texts shortened to
// what agents are sent.
func OwnRefusals(refused []agent.Refusal) []agent.Refusal {
	own := slices.Clone(refused)
	for i := range own {
		r := &own[i]
		names := make([]string, min(len(r.Names), agent.MaxRefusalNames))
		for n := range names {
			names[n] = strings.Clone(agent.ShortenText(r.Names[n], MaxNameBytes))
		}
		r.Names, r.Message = names, strings.Clone(agent.ShortenText(r.Message, MaxRefusalText))
	}
	return own
}

// RefusalMessage converts a refusal of the request with the sequence, or of those from
// first to it, which is 0 otherwise.
func RefusalMessage(first, sequence int64, r *agent.Refusal) *agentstatsv1.Refusal {
	return &agentstatsv1.Refusal{
		Sequence:      sequence,
		FirstSequence: first,
		Code:          refusalCodes[r.Kind],
		Reason:        r.Reason,
		Message:       r.Message,
		Names:         r.Names,
		Count:         int64(r.Count),
	}
}
