// Package apphealth decides which apps of a registration may have a health.
package apphealth

import (
	"fmt"
	"slices"

	"github.com/coder/agentstatsd/agent"
)

// Reasons of refusals.
const (
	ReasonUnknownApp  = "unknown_app"
	ReasonDisabledApp = "disabled_app"
)

// Refuse removes from health the apps that are not registered, or registered as disabled.
// It returns their refusals.
func Refuse(health map[agent.ID]agent.AppHealth, apps []agent.App) []agent.Refusal {
	unknown := agent.Refusal{
		Kind:    agent.RefusedInvalid,
		Reason:  ReasonUnknownApp,
		Message: fmt.Sprintf("app_health.updates.id: want one of the %d apps of the agent's registration", len(apps)),
	}
	disabled := agent.Refusal{
		Kind:    agent.RefusedNotAllowed,
		Reason:  ReasonDisabledApp,
		Message: "app_health.updates.id: want an app whose health is checked, got one that is registered as disabled",
	}
	for id := range health {
		refusal := &unknown
		if i := slices.IndexFunc(apps, func(a agent.App) bool { return a.ID == id }); i >= 0 {
			if apps[i].Health != agent.AppHealthDisabled {
				continue
			}
			refusal = &disabled
		}
		delete(health, id)
		refusal.Count++
		refusal.Names = append(refusal.Names, id.String())
	}
	var refused []agent.Refusal
	for _, r := range []agent.Refusal{unknown, disabled} {
		if r.Count > 0 {
			slices.Sort(r.Names) // the iteration order of a map is random
			r.Names = r.Names[:min(len(r.Names), agent.MaxRefusalNames)]
			refused = append(refused, r)
		}
	}
	return refused
}
