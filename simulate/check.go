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
	// maxSessions of an agent are remembered: those of the last few checks.
	maxSessions = 8
	// maxViolations are described in words.
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
	// born is when the first session opened.
	born     time.Time
	sessions []session
	// received is how many reports were received before the newest session.
	received int64
}

// onState takes in the state of the client, which has had this many reports
// received.
func (p *presence) onState(c client.Connection, received int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c {
	case client.Connected:
		if p.born.IsZero() {
			p.born = now
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

// onAck takes in an ack.
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

// endSession ends the session: with a goodbye the agent's series go, before its
// stream does.
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
func (p *presence) snapshot() (born time.Time, sessions []session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.born, slices.Clone(p.sessions)
}

// finding is what a check says of a subject.
type finding struct {
	duplicates, transientDuplicates, misses, transientMisses int64
}

// verdict is what successive checks say of a subject. A violation is what two of
// them see: a second series that nothing that happened between them explains,
// or none at all of an agent that was connected throughout.
type verdict struct {
	// twice is true if the last check saw a second series; counted is true if that
	// is a violation already.
	twice, counted bool
	// missed counts the last checks that saw none.
	missed int
	// doubt is when the second of these ended, in the session that opened then:
	// it is a violation if the session lived on, which its next ack proves. A
	// connection can be dead for long before the client knows it.
	doubt, doubted time.Time
}

// judge takes in that all replicas together serve the subject n times, in the
// check now that follows the check before. The sessions are those that are known
// after the check.
func (v *verdict) judge(before, now check, n float64, sessions []session) finding {
	f := v.resolveDoubt(sessions)
	switch {
	case n <= 1:
		f.transientDuplicates += v.once()
	case !v.twice:
		v.twice = true
	case v.counted:
	case slices.ContainsFunc(sessions, func(s session) bool {
		return s.opened.After(before.ended) || s.reported.After(before.ended)
	}):
		// Another replica serves it since.
		f.transientDuplicates++
	default:
		v.counted = true
		f.duplicates++
	}

	steady := slices.IndexFunc(sessions, func(s session) bool {
		return !s.reported.IsZero() && s.reported.Before(before.began) && s.ended.IsZero()
	})
	if n > 0 || steady < 0 {
		if v.missed == 1 {
			f.transientMisses++
		}
		v.missed = 0
		return f
	}
	v.missed++
	if v.missed == 2 && v.doubt.IsZero() {
		v.doubt, v.doubted = now.ended, sessions[steady].opened
	}
	return f
}

// resolveDoubt decides on a doubt if the sessions can.
func (v *verdict) resolveDoubt(sessions []session) (f finding) {
	if v.doubt.IsZero() {
		return f
	}
	at := slices.IndexFunc(sessions, func(s session) bool { return s.opened.Equal(v.doubted) })
	switch {
	case at >= 0 && sessions[at].acked.After(v.doubt):
		f.misses++
	case at >= 0 && sessions[at].ended.IsZero():
		return f
	default:
		f.transientMisses++
	}
	v.doubt, v.doubted = time.Time{}, time.Time{}
	return f
}

// once takes in that there is no second series, and returns 1 if there was one
// in a single check.
func (v *verdict) once() (transient int64) {
	if v.twice && !v.counted {
		transient = 1
	}
	v.twice, v.counted = false, false
	return transient
}

// checker checks that all replicas together serve each agent once.
type checker struct {
	scraper  scraper
	interval time.Duration
	log      *slog.Logger

	// last is the newest check, the zero one at first.
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
		// To compress costs the service more than to send, which is not what a
		// check is to show.
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
		c.judgeAgents(now, found, agents())
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

// judgeAgents judges the agents after a check. Those whose life began after the check
// before are left out: what an earlier life of theirs left is not theirs.
func (c *checker) judgeAgents(now check, found served, agents []*agent) {
	c.summary.Checks++
	for _, a := range agents {
		born, sessions := a.presence.snapshot()
		if born.IsZero() || !born.Before(c.last.began) {
			continue
		}
		c.summary.Agents++
		if a.verdicts == nil {
			a.verdicts = make([]verdict, len(c.scraper.families))
		}
		for i := range a.verdicts {
			at := subject{identityOf(a.planned.registration), i}
			n := 0.0
			for _, m := range found[at] {
				n += m
			}
			c.add(at, a.verdicts[i].judge(c.last, now, n, sessions), found[at])
		}
	}
	c.last = now
}

// finish returns the summary, after the last check and all last acks.
func (c *checker) finish(agents []*agent) *CheckSummary {
	for _, a := range agents {
		_, sessions := a.presence.snapshot()
		for i := range a.verdicts {
			f := a.verdicts[i].resolveDoubt(sessions)
			f.transientDuplicates += a.verdicts[i].once()
			c.add(subject{identityOf(a.planned.registration), i}, f, nil)
		}
	}
	return &c.summary
}

// add adds a finding, and words for a violation; values are what the replicas
// serve now.
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
	// Checks that were made, and the sum over them of the agents that were
	// looked at.
	Checks int64 `json:"checks"`
	Agents int64 `json:"agents"`
	// Duplicates is how often a family of an agent was served more than once in
	// successive checks, although the agent had not moved between them; Misses
	// how often it was not served in successive checks, although the agent was
	// connected and had reported before.
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
