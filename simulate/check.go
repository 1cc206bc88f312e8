package simulate

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/client"
)

const (
	// maxSessions bounds the sessions that are kept of an agent: those of the last few
	// checks.
	maxSessions = 8
	// maxViolations bounds the violations that are described.
	maxViolations = 10
)

// check is when all replicas were scraped.
type check struct {
	began, ended time.Time
}

// session is one session of an agent, as its client saw it.
type session struct {
	opened time.Time
	// reported is when the first ack of a report came; zero: none did.
	reported time.Time
	// acked is when the newest ack came.
	acked time.Time
	// ended is zero while the session is open.
	ended time.Time
}

// presence are the newest sessions of one life of an agent. The goroutines of
// its client call it, and the check.
type presence struct {
	mu sync.Mutex
	// firstOpened is when the first session opened.
	firstOpened time.Time
	sessions    []session
	// received is how many reports were received before the newest session.
	received int64
}

// onState handles a state of the client. received is the number of its reports that
// were acked.
func (p *presence) onState(c client.Connection, received int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c {
	case client.Connected:
		if p.firstOpened.IsZero() {
			p.firstOpened = now
		}
		if len(p.sessions) == maxSessions {
			p.sessions = slices.Delete(p.sessions, 0, 1)
		}
		p.sessions = append(p.sessions, session{opened: now})
		p.received = received
	case client.Waiting, client.Stopped:
		p.endLocked(now)
	}
}

// onAck handles an ack.
func (p *presence) onAck(received int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sessions) == 0 {
		return
	}
	s := &p.sessions[len(p.sessions)-1]
	s.acked = now
	if s.reported.IsZero() && received > p.received {
		s.reported = now
	}
}

// endSession ends the session. After a goodbye the agent's series are removed before
// its stream ends.
func (p *presence) endSession(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(now)
}

func (p *presence) endLocked(now time.Time) {
	if n := len(p.sessions); n > 0 && p.sessions[n-1].ended.IsZero() {
		p.sessions[n-1].ended = now
	}
}

// snapshot returns when the first session opened, zero if none did, and the
// newest sessions.
func (p *presence) snapshot() (firstOpened time.Time, sessions []session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.firstOpened, slices.Clone(p.sessions)
}

// finding counts what a check found of a subject.
type finding struct {
	duplicates, transientDuplicates, misses, transientMisses int64
}

// history is what successive checks saw of a subject. A violation takes two of them.
// Both see a second series although the agent had no new session, or none although it
// was connected.
type history struct {
	// twice is true if the last check saw a second series; counted is true if that
	// is a violation already.
	twice, counted bool
	// missed counts the last checks that saw none.
	missed int
	// doubt is when the second of these ended, doubted when the agent's session then
	// was opened. It is a violation if the session was still alive, which its next ack
	// proves. A connection can be dead long before the client knows.
	doubt, doubted time.Time
}

// addCheck adds the check now, which follows before, and returns what it found. n is
// how often all replicas together serve the subject. sessions are those that are known
// after the check.
func (h *history) addCheck(before, now check, n float64, sessions []session) finding {
	f := h.resolveDoubt(sessions)
	switch {
	case n <= 1:
		f.transientDuplicates += h.clearTwice()
	case !h.twice:
		h.twice = true
	case h.counted:
	case slices.ContainsFunc(sessions, func(s session) bool {
		return s.opened.After(before.ended) || s.reported.After(before.ended)
	}):
		// Another replica serves it since.
		f.transientDuplicates++
	default:
		h.counted = true
		f.duplicates++
	}

	steady := slices.IndexFunc(sessions, func(s session) bool {
		return !s.reported.IsZero() && s.reported.Before(before.began) && s.ended.IsZero()
	})
	if n > 0 || steady < 0 {
		if h.missed == 1 {
			f.transientMisses++
		}
		h.missed = 0
		return f
	}
	h.missed++
	if h.missed == 2 && h.doubt.IsZero() {
		h.doubt, h.doubted = now.ended, sessions[steady].opened
	}
	return f
}

// resolveDoubt decides on a doubt if the sessions can.
func (h *history) resolveDoubt(sessions []session) (f finding) {
	if h.doubt.IsZero() {
		return f
	}
	at := slices.IndexFunc(sessions, func(s session) bool { return s.opened.Equal(h.doubted) })
	switch {
	case at >= 0 && sessions[at].acked.After(h.doubt):
		f.misses++
	case at >= 0 && sessions[at].ended.IsZero():
		return f
	default:
		f.transientMisses++
	}
	h.doubt, h.doubted = time.Time{}, time.Time{}
	return f
}

// clearTwice records that there is no second series any more. It returns 1 if there was
// one in a single check.
func (h *history) clearTwice() (transient int64) {
	if h.twice && !h.counted {
		transient = 1
	}
	h.twice, h.counted = false, false
	return transient
}

// checker checks that all replicas together serve each agent once.
type checker struct {
	scraper  scraper
	interval time.Duration
	log      *slog.Logger

	// last is the newest check; zero: there was none.
	last    check
	summary CheckSummary
	// failing are the endpoints that could not be scraped.
	failing []bool
}

// newChecker returns nil if there is nothing to check.
func newChecker(o Options, forwarded []series, log *slog.Logger) *checker {
	if len(o.Metrics) == 0 {
		return nil
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return o.dialer(0)(ctx, address) },
		// Compression would cost the service more than the scrape itself.
		DisableCompression: true,
	}
	if config := withoutCertificate(o.Dial.TLS); config != nil {
		config.ServerName = ""
		transport.TLSClientConfig = config
	}
	c := &checker{
		scraper: scraper{
			families: watchedFamilies(forwarded),
			client:   &http.Client{Transport: transport},
			timeout:  o.CheckInterval,
		},
		interval: o.CheckInterval,
		log:      log,
		failing:  make([]bool, len(o.Metrics)),
	}
	for _, raw := range o.Metrics {
		// They are valid: see validate.
		u, _ := url.Parse(raw)
		c.scraper.endpoints = append(c.scraper.endpoints, endpoint{url: u})
	}
	return c
}

// run checks until ctx ends.
func (c *checker) run(ctx context.Context, agents func() []*agent) {
	defer c.scraper.client.CloseIdleConnections()
	ticker := time.NewTicker(c.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := check{began: time.Now()}
		found := c.scraper.scrape(ctx)
		now.ended = time.Now()
		if ctx.Err() != nil {
			return
		}
		c.logFailures(ctx)
		c.checkAgents(now, found, agents())
	}
}

// logFailures logs endpoints that fail since this scrape.
func (c *checker) logFailures(ctx context.Context) {
	for i, e := range c.scraper.endpoints {
		if e.err != nil && !c.failing[i] {
			c.log.WarnContext(ctx, "a replica cannot be scraped", "url", e.url.Redacted(), "error", e.err)
		}
		c.failing[i] = e.err != nil
	}
}

// checkAgents adds a check to the agents' histories. It skips agents that started after
// the check before: series may be left of the workspace's last agent.
func (c *checker) checkAgents(now check, found served, agents []*agent) {
	c.summary.Checks++
	for _, a := range agents {
		firstOpened, sessions := a.presence.snapshot()
		if firstOpened.IsZero() || !firstOpened.Before(c.last.began) {
			continue
		}
		c.summary.Agents++
		if a.histories == nil {
			a.histories = make([]history, len(c.scraper.families))
		}
		for i := range a.histories {
			at := subject{identityOf(a.planned.registration), i}
			n := 0.0
			for _, m := range found[at] {
				n += m
			}
			c.add(at, a.histories[i].addCheck(c.last, now, n, sessions), found[at])
		}
	}
	c.last = now
}

// finish returns the summary, after the last check and all last acks.
func (c *checker) finish(agents []*agent) *CheckSummary {
	for _, a := range agents {
		_, sessions := a.presence.snapshot()
		for i := range a.histories {
			f := a.histories[i].resolveDoubt(sessions)
			f.transientDuplicates += a.histories[i].clearTwice()
			c.add(subject{identityOf(a.planned.registration), i}, f, nil)
		}
	}
	return &c.summary
}

// add adds a finding to the summary, and describes a violation. values are how often
// each replica serves the subject now.
func (c *checker) add(at subject, f finding, values []float64) {
	s := &c.summary
	s.Duplicates += f.duplicates
	s.TransientDuplicates += f.transientDuplicates
	s.Misses += f.misses
	s.TransientMisses += f.transientMisses
	if f.duplicates+f.misses == 0 || len(s.Violations) == maxViolations {
		return
	}
	what := "was served more than once"
	if f.misses > 0 {
		what = "was not served"
	}
	text := fmt.Sprintf("%s of %s %s in two successive checks; now:", c.scraper.families[at.family].name, at.identity, what)
	for i, e := range c.scraper.endpoints {
		n := 0.0
		if values != nil {
			n = values[i]
		}
		text += fmt.Sprintf(" %s=%g", e.url.Redacted(), n)
	}
	s.Violations = append(s.Violations, text)
	c.log.Warn("not every agent is served once", "violation", text)
}

// CheckSummary is what the checks of the replicas' metrics found.
type CheckSummary struct {
	// Checks that were made, and the sum of the agents in each of them.
	Checks int64 `json:"checks"`
	Agents int64 `json:"agents"`
	// Duplicates counts families of an agent that were served more than once in
	// successive checks although the agent had not moved. Misses counts those that were
	// not served in successive checks although the agent was connected and had
	// reported.
	Duplicates int64 `json:"duplicates"`
	Misses     int64 `json:"misses"`
	// TransientDuplicates and TransientMisses were seen in a single check, as a
	// move allows it, or are explained by moves or broken connections.
	TransientDuplicates int64 `json:"transient_duplicates"`
	TransientMisses     int64 `json:"transient_misses"`
	// Violations are the first duplicates and misses in words.
	Violations []string `json:"violations,omitempty"`
}

// Clean reports whether there was no violation; without checks there is none.
func (c *CheckSummary) Clean() bool { return c == nil || c.Duplicates == 0 && c.Misses == 0 }
