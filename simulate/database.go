package simulate

import (
	"math"
	"time"
)

// shownWorkspaces is how many workspaces are in the simulated database.
const shownWorkspaces = 25

// firstCreation is when the first workspace of the database was made.
var firstCreation = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// latestBuild is what coderd counts workspaces by.
type latestBuild struct {
	status, template, version, owner, transition string
}

// showDatabase shows what coderd reads from its database. It depends on the time
// alone, so that all instances show the same.
func (r *CoderdRegistry) showDatabase(now time.Time) {
	f := &r.families
	users := math.Round(30 + 25*wave(now, time.Hour, 0))
	f.activeUsers.Set(users)
	f.licenseUsers.Set(users + 40)
	f.licenseLimit.Set(100)
	f.licenseEnabled.Set(1)
	f.licenseErrors.Set(0)
	warnings := 0.0
	if users+40 > 90 {
		warnings = 1
	}
	f.licenseWarnings.Set(warnings)

	byStatus := map[string]float64{"pending": 0, "running": 0, "succeeded": 0, "failed": 0, "canceled": 0}
	latest := make(map[latestBuild]float64)
	for w := range shownWorkspaces {
		b := latestBuild{"succeeded", templates[w%len(templates)], versionName(w), ownerName(w), "start"}
		// Each minute other workspaces are built or were stopped.
		switch (w + int(now.Unix()/60)) % 12 {
		case 0:
			b.status = "running"
		case 1:
			b.status = "pending"
		case 2:
			b.status = "failed"
		case 3, 4:
			b.transition = "stop"
		}
		byStatus[b.status]++
		latest[b]++
	}
	for status, n := range byStatus {
		f.latestBuild.WithLabelValues(status).Set(n)
	}
	for b := range r.latestBuilds {
		if _, still := latest[b]; !still {
			f.latestBuildStatus.DeleteLabelValues(b.status, b.template, b.version, b.owner, b.transition)
		}
	}
	for b, n := range latest {
		f.latestBuildStatus.WithLabelValues(b.status, b.template, b.version, b.owner, b.transition).Set(n)
	}
	r.latestBuilds = latest

	// A template gets a workspace each five minutes, one template after the other.
	age := max(0, now.Sub(firstCreation))
	for i, template := range templates {
		made := (age + time.Duration(i)*time.Minute) / (5 * time.Minute)
		f.creations.show(organizationOf(i), presets[i%len(presets)], template, 1+float64(made))
	}
}

// builtInApps are the apps that insights know without a slug.
var builtInApps = []string{"Visual Studio Code", "JetBrains", "Web Terminal", "SSH"}

// showInsights shows what coderd reads from its database every five minutes.
func (r *CoderdRegistry) showInsights(now time.Time) {
	f := &r.families
	now = now.Truncate(5 * time.Minute)
	for i, template := range templates {
		organization := organizationOf(i)
		f.templateUsers.WithLabelValues(organization, template).Set(math.Round(12 * wave(now, time.Hour, i)))
		for n, app := range builtInApps {
			f.appUsage.WithLabelValues(app, organization, "", template).Set(60 * math.Round(20*wave(now, 2*time.Hour, i+n)))
		}
		f.appUsage.WithLabelValues("code-server", organization, "code-server", template).Set(60 * math.Round(10*wave(now, 2*time.Hour, i+7)))
		for n, cores := range []string{"2", "4", "8"} {
			f.parameters.WithLabelValues(organization, "cpu", "number", cores, template).Set(math.Round(6 * wave(now, 3*time.Hour, i+n)))
		}
	}
}

// wave swings between 0 and 1 with the given period.
func wave(now time.Time, period time.Duration, shift int) float64 {
	angle := 2 * math.Pi * float64(now.UnixNano()%int64(period)) / float64(period)
	return (1 + math.Sin(angle+float64(shift))) / 2
}
