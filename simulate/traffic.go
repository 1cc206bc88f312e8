package simulate

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// route is one route of coderd's API.
type route struct {
	method, path string
	// rate of requests a second, and their mean duration in seconds.
	rate, seconds float64
	websocket     bool
}

var routes = []route{
	{"GET", "/api/v2/users/{user}", 3, 0.006, false},
	{"GET", "/api/v2/workspaces/", 2, 0.06, false},
	{"GET", "/api/v2/workspaces/{workspace}", 4, 0.02, false},
	{"POST", "/api/v2/workspaces/{workspace}/builds", 0.1, 0.2, false},
	{"GET", "/api/v2/buildinfo", 1, 0.001, false},
	{"GET", "STATIC", 2, 0.002, false},
	{"GET", "UNKNOWN", 0.05, 0.001, false},
	{"GET", "/api/v2/workspaceagents/{workspaceagent}/coordinate", 0.05, 3000, true},
	{"GET", "/api/v2/workspaceagents/{workspaceagent}/pty", 0.05, 300, true},
	{"GET", "/api/v2/workspaces/{workspace}/watch-ws", 0.1, 120, true},
}

// tickAPI lets requests come and go.
func (r *CoderdRegistry) tickAPI(seconds float64) {
	f := &r.families
	for _, route := range routes {
		for range r.times(route.rate * seconds) {
			code := 200
			switch n := r.random.IntN(100); {
			case route.path == "UNKNOWN":
				code = 404
			case n == 0:
				code = 500
			case n < 4:
				code = 401
			case route.websocket:
				code = 101
			case route.method == "POST":
				code = 201
			}
			f.requests.WithLabelValues(strconv.Itoa(code), route.method, route.path).Inc()
			if route.websocket {
				f.websocketSeconds.WithLabelValues(route.path).Observe(r.around(route.seconds))
			} else {
				f.requestSeconds.WithLabelValues(route.method, route.path).Observe(r.around(route.seconds))
			}
		}
	}
	r.websockets = max(1, r.websockets+r.random.IntN(5)-2)
	for _, route := range routes {
		if route.websocket {
			f.websocketsNow.WithLabelValues(route.path).Set(float64(r.websockets))
		} else {
			f.requestsNow.WithLabelValues(route.method, route.path).Set(float64(r.random.IntN(4)))
		}
	}
}

const (
	provisioner = "terraform"
	// daemons is how many jobs an instance can run at a time.
	daemons = 3
)

var presets = []string{"", "small", "large"}

// tickProvisioner lets jobs begin and end.
func (r *CoderdRegistry) tickProvisioner(seconds float64) {
	f := &r.families
	r.running = min(daemons, r.running+r.times(seconds/4))
	ended := min(r.running, r.times(seconds/4))
	r.running -= ended
	for range ended {
		r.endJob()
	}
	f.jobsNow.WithLabelValues(provisioner).Set(float64(r.running))
	f.daemons.Set(daemons)
}

// endJob counts a job that has ended: the import of a template, or the build of
// a workspace.
func (r *CoderdRegistry) endJob() {
	f := &r.families
	took := 2 + r.around(25)
	status := "success"
	if r.random.IntN(20) == 0 {
		status = "failed"
	}
	f.jobSeconds.WithLabelValues(provisioner, status).Observe(took)
	if r.random.IntN(10) == 0 {
		return
	}
	w := r.random.IntN(shownWorkspaces)
	template, version := templates[w%len(templates)], versionName(w)
	transition := pick(r.random, []string{"START", "START", "START", "STOP", "DESTROY"})
	f.buildSeconds.WithLabelValues(status, template, version, transition).Observe(took)
	f.builds.WithLabelValues(status, template, version, "api-"+strconv.Itoa(w), ownerName(w), transition).Inc()
	if transition != "START" || status == "failed" {
		return
	}
	organization, preset := organizationOf(w), pick(r.random, presets)
	switch r.random.IntN(4) {
	case 0:
		f.creationSeconds.WithLabelValues(organization, preset, template, "regular").Observe(took)
	case 1:
		f.creationSeconds.WithLabelValues(organization, preset, template, "prebuild").Observe(took)
	case 2:
		f.claimSeconds.WithLabelValues(organization, preset, template).Observe(r.around(8))
	}
}

// aiModel is a model behind the AI bridge.
type aiModel struct {
	provider, model, route string
	// client is what calls it.
	client string
}

var aiModels = []aiModel{
	{"anthropic", "claude-sonnet-4-5", "/v1/messages", "Claude Code"},
	{"anthropic", "claude-haiku-4-5", "/v1/messages", "Claude Code"},
	{"openai", "gpt-5", "/v1/responses", "Codex"},
}

// tickBridge lets users talk to models.
func (r *CoderdRegistry) tickBridge(seconds float64) {
	f := &r.families
	for _, m := range aiModels {
		begun := r.inflight[m] + r.times(seconds/3)
		ended := min(begun, r.times(seconds/3))
		r.inflight[m] = begun - ended
		f.interceptionsNow.WithLabelValues(m.model, m.provider, m.route).Set(float64(r.inflight[m]))
		for range ended {
			r.endInterception(m)
		}
	}
}

func (r *CoderdRegistry) endInterception(m aiModel) {
	f := &r.families
	user := initiators[r.random.IntN(len(initiators))]
	status := "completed"
	if r.random.IntN(25) == 0 {
		status = "failed"
	}
	f.interceptions.WithLabelValues(m.client, user, "POST", m.model, m.provider, m.route, status).Inc()
	f.interceptionSeconds.WithLabelValues(m.model, m.provider).Observe(r.around(9))
	if status == "failed" {
		return
	}
	if r.random.IntN(3) == 0 {
		f.prompts.WithLabelValues(m.client, user, m.model, m.provider).Inc()
	}
	for _, tokens := range []struct {
		kind string
		most int
	}{{"input", 20000}, {"output", 2000}, {"cache_read_input", 50000}} {
		f.tokens.WithLabelValues(m.client, user, m.model, m.provider, tokens.kind).Add(float64(r.random.IntN(tokens.most)))
	}
	if r.random.IntN(3) == 0 {
		f.injectedTools.WithLabelValues(m.model, pick(r.random, []string{"coder_list_workspaces", "coder_get_task"}), m.provider, "coder").Inc()
	}
	if r.random.IntN(2) == 0 {
		f.clientTools.WithLabelValues(m.model, pick(r.random, []string{"Bash", "Read", "Edit"}), m.provider).Inc()
	}
}

const (
	externalAuth = "primary-github"
	resource     = "core"
	// hourlyRequests is GitHub's limit.
	hourlyRequests = 5000
)

// rateLimit is what an instance has used of the limit of an hour.
type rateLimit struct {
	hour time.Time
	used int
}

// tickExternalAuth lets coderd ask GitHub.
func (r *CoderdRegistry) tickExternalAuth(now time.Time, seconds float64) {
	f := &r.families
	if hour := now.Truncate(time.Hour); !hour.Equal(r.rateLimit.hour) {
		r.rateLimit = rateLimit{hour: hour}
	}
	n := r.times(seconds / 2)
	for range n {
		code := "200"
		switch r.random.IntN(50) {
		case 0:
			code = "401"
		case 1:
			code = "0"
		}
		source := pick(r.random, []string{"ValidateToken", "ValidateToken", "TokenSource", "Exchange", "AppInstallations"})
		f.externalRequests.WithLabelValues(externalAuth, source, code).Inc()
	}
	r.rateLimit.used = min(hourlyRequests, r.rateLimit.used+n)
	reset := r.rateLimit.hour.Add(time.Hour)
	f.rateLimit.WithLabelValues(externalAuth, resource).Set(hourlyRequests)
	f.rateLimitUsed.WithLabelValues(externalAuth, resource).Set(float64(r.rateLimit.used))
	f.rateLimitRemaining.WithLabelValues(externalAuth, resource).Set(float64(hourlyRequests - r.rateLimit.used))
	f.rateLimitNextReset.WithLabelValues(externalAuth, resource).Set(float64(reset.Unix()))
	f.rateLimitResetIn.WithLabelValues(externalAuth, resource).Set(reset.Sub(now).Seconds())
}

// begin makes the series that are there before the first event.
func (f *coderdFamilies) begin() {
	for _, route := range routes {
		f.requests.WithLabelValues("200", route.method, route.path)
		if route.websocket {
			f.websocketSeconds.WithLabelValues(route.path)
		} else {
			f.requestSeconds.WithLabelValues(route.method, route.path)
		}
	}
	f.jobSeconds.WithLabelValues(provisioner, "success")
	template, version := templates[0], versionName(0)
	f.buildSeconds.WithLabelValues("success", template, version, "START")
	f.builds.WithLabelValues("success", template, version, "api-0", ownerName(0), "START")
	f.creationSeconds.WithLabelValues(organizationOf(0), presets[0], template, "regular")
	f.claimSeconds.WithLabelValues(organizationOf(0), presets[0], template)
	for _, m := range aiModels {
		f.interceptions.WithLabelValues(m.client, initiators[0], "POST", m.model, m.provider, m.route, "completed")
		f.interceptionSeconds.WithLabelValues(m.model, m.provider)
		f.prompts.WithLabelValues(m.client, initiators[0], m.model, m.provider)
		f.tokens.WithLabelValues(m.client, initiators[0], m.model, m.provider, "input")
		f.injectedTools.WithLabelValues(m.model, "coder_list_workspaces", m.provider, "coder")
		f.clientTools.WithLabelValues(m.model, "Bash", m.provider)
	}
	f.externalRequests.WithLabelValues(externalAuth, "ValidateToken", "200")
}

// initiators are ids of the users who talk to models.
var initiators = func() []string {
	ids := make([]string, 5)
	for i := range ids {
		ids[i] = uuid.NewHash(sha256.New(), namespace, fmt.Appendf(nil, "initiator/%d", i), 5).String()
	}
	return ids
}()
