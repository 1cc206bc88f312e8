package simulate

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxScrapeBytes is read of a replica's answer: 5 million series have about
	// 1 GB.
	maxScrapeBytes = 1 << 30
	// maxLineBytes bounds a line: labels have a few hundred bytes.
	maxLineBytes = 1 << 20
)

// identity are the labels that identify agents.
type identity struct {
	username, workspace, agent string
}

func (i identity) String() string { return i.username + "/" + i.workspace + "/" + i.agent }

func identityOf(r *agentstatsv1.AgentRegistration) identity {
	w := r.GetWorkspace()
	return identity{w.GetOwnerUsername(), w.GetName(), r.GetName()}
}

// watched is a family that all replicas together serve once for each agent.
type watched struct {
	name string
	// label that a series has beside others; empty: any.
	label, value string
	// summed is true if the values count, otherwise series do.
	summed bool
}

// watchedFamilies returns the families that are checked of agents that forward these
// series: one of states, one computed of reports, and a forwarded one.
func watchedFamilies(forwarded []series) []watched {
	families := []watched{
		{name: "coderd_agents_connections", summed: true},
		{name: "coderd_agentstats_connection_count"},
	}
	if len(forwarded) > 0 {
		w := watched{name: forwarded[0].name}
		for _, l := range forwarded[0].labels {
			w.label, w.value = l.GetName(), l.GetValue()
		}
		families = append(families, w)
	}
	return families
}

// subject is one family of one agent.
type subject struct {
	identity
	// family is the index of the watched one.
	family int
}

// served has how often each replica serves each subject, by the index of the replica.
type served map[subject][]float64

func (s served) add(at subject, replica, replicas int, n float64) {
	if s[at] == nil {
		s[at] = make([]float64, replicas)
	}
	s[at][replica] += n
}

// scraper reads what replicas serve of watched families. It is for one
// goroutine.
type scraper struct {
	endpoints []endpoint
	families  []watched
	client    *http.Client
	timeout   time.Duration
}

// endpoint is where Prometheus scrapes a replica.
type endpoint struct {
	url *url.URL
	// err is why the last scrape failed.
	err error
}

// scrape scrapes all replicas at the same time. One that cannot be scraped
// serves nothing; its endpoint has the reason.
func (s *scraper) scrape(ctx context.Context) served {
	texts := make([][]byte, len(s.endpoints))
	var scraping sync.WaitGroup
	for i := range s.endpoints {
		scraping.Go(func() { texts[i], s.endpoints[i].err = s.get(ctx, s.endpoints[i].url.String()) })
	}
	scraping.Wait()
	all := make(served)
	for i, text := range texts {
		if err := s.parse(text, i, all); err != nil {
			s.endpoints[i].err = err
		}
	}
	return all
}

// get returns the lines of watched families.
func (s *scraper) get(ctx context.Context, endpoint string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape: status %s", resp.Status)
	}
	return s.filter(io.LimitReader(resp.Body, maxScrapeBytes))
}

// filter returns the lines of watched families, without their types: a label's
// value has no line break in it.
func (s *scraper) filter(r io.Reader) ([]byte, error) {
	var kept bytes.Buffer
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		name, _, ok := bytes.Cut(lines.Bytes(), []byte("{"))
		if !ok {
			continue
		}
		for i := range s.families {
			if string(name) == s.families[i].name {
				kept.Write(lines.Bytes())
				kept.WriteByte('\n')
				break
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	return kept.Bytes(), nil
}

// parse adds what a replica serves.
func (s *scraper) parse(text []byte, replica int, all served) error {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("parse scrape: %w", err)
	}
	for i, w := range s.families {
		for _, m := range parsed[w.name].GetMetric() {
			id, ok := w.match(m)
			if !ok {
				continue
			}
			n := 1.0
			if w.summed {
				n = m.GetUntyped().GetValue()
			}
			all.add(subject{id, i}, replica, len(s.endpoints), n)
		}
	}
	return nil
}

// match returns whose a series is, and whether it is watched.
func (w watched) match(m *dto.Metric) (id identity, ok bool) {
	ok = w.label == ""
	for _, l := range m.GetLabel() {
		switch l.GetName() {
		case "username":
			id.username = l.GetValue()
		case "workspace_name":
			id.workspace = l.GetValue()
		case "agent_name":
			id.agent = l.GetValue()
		case w.label:
			ok = l.GetValue() == w.value
		}
	}
	return id, ok
}
