package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
)

// FleetSection of the figures: what an agent takes in a minute that behaves as real
// ones do, by the real client, with the default intervals.
const FleetSection = "fleet"

// Metrics of a fleet.
const (
	// FleetCPU is what the service takes, FleetDatabase the part of it with the
	// database's driver on the stack, by a profile, FleetRest the difference.
	FleetCPU      = "CPU, ms an agent-minute"
	FleetDatabase = "CPU in the database driver, ms an agent-minute"
	FleetRest     = "CPU without the database driver, ms an agent-minute"
	// FleetMessages are those of both ways.
	FleetMessages = "messages an agent-minute"
	FleetResident = "resident, bytes an agent"
	FleetCores    = "cores of the service"
	// FleetScrape is the longest of those each 30 s, text with gzip.
	FleetScrape = "longest scrape, ms"
)

// FleetSubjects are the service, and a server that receives as many bytes in as many
// messages, and answers as many.
var FleetSubjects = []string{Fast, Answering}

// Fleet is how many agents there are, and how many samples each reports. They have 10
// metadata keys, whose values change each 10 s.
type Fleet struct {
	Agents, Samples int
	// Settle is the time between the connect of all and the measurement, which takes
	// Window. By then the reports that agents send as they connect are over.
	Settle, Window time.Duration
	// Relayed has coderds relay for the agents, of whose keys one changes each 10 s.
	Relayed bool
}

// Case names the figures of a fleet.
func (f Fleet) Case() string {
	if f.Relayed {
		return fmt.Sprintf("%d relayed agents, %d samples", f.Agents, f.Samples)
	}
	return fmt.Sprintf("%d agents, %d samples", f.Agents, f.Samples)
}

// fleetConnects bounds the time until all are connected.
const fleetConnects = 5 * time.Minute

// MeasureFleet adds the figures of a fleet to run.
func MeasureFleet(ctx context.Context, run *figure.Run, binary, dir string, f Fleet) error {
	seen, err := f.measure(ctx, binary, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", Fast, err)
	}
	add := func(subject, metric string, v float64) {
		run.Add(figure.Key{Section: FleetSection, Case: f.Case(), Subject: subject, Metric: metric}, v)
	}
	minutes := float64(f.Agents) * f.Window.Minutes()
	milliseconds := float64(seen.cpu) / float64(time.Millisecond) / minutes
	add(Fast, FleetCPU, milliseconds)
	add(Fast, FleetDatabase, milliseconds*seen.databaseShare)
	add(Fast, FleetRest, milliseconds*(1-seen.databaseShare))
	add(Fast, FleetMessages, (seen.received+seen.sent)/minutes)
	add(Fast, FleetResident, float64(seen.resident)/float64(f.Agents))
	add(Fast, FleetCores, seen.cpu.Seconds()/f.Window.Seconds())
	add(Fast, FleetScrape, float64(seen.scrape)/float64(time.Millisecond))
	cpu, err := f.discard(ctx, seen)
	if err != nil {
		return fmt.Errorf("%s: %w", Answering, err)
	}
	add(Answering, FleetCPU, float64(cpu)/float64(time.Millisecond)/(float64(f.Agents)*f.discardWindow().Minutes()))
	return nil
}

// fleetSeen is what the service did in the window.
type fleetSeen struct {
	cpu            time.Duration
	databaseShare  float64 // of cpu
	received, sent float64 // messages
	bytes          int64   // received
	resident       int64   // bytes, at the end
	connections    int     // that agents or relays have
	scrape         time.Duration
}

func (f Fleet) measure(ctx context.Context, binary, dir string) (fleetSeen, error) {
	var seen fleetSeen
	addrs, err := FreeAddresses(ctx, 1)
	if err != nil {
		return seen, err
	}
	service, err := StartAgentstatsd(ctx, binary, dir, "--pprof-address", addrs[0], "--adaptive-intervals=false",
		"--max-agents", strconv.Itoa(2*f.Agents), "--max-series", strconv.Itoa(4*f.Agents*f.Samples))
	if err != nil {
		return seen, err
	}
	defer service.Stop()
	simulate := []string{
		"simulate", "--steady", "--target", service.GRPC, "--coderd-token-file", service.TokenFile,
		"--agents", strconv.Itoa(f.Agents), "--metrics-per-agent", strconv.Itoa(f.Samples),
	}
	if f.Relayed {
		simulate = append(simulate, "--relay", "--metadata-changing", "1")
	}
	agents, err := process.Start(ctx, binary, simulate...)
	if err != nil {
		return seen, err
	}
	defer agents.Kill()
	if err := f.await(ctx, service, agents); err != nil {
		return seen, err
	}
	before, err := look(ctx, service)
	if err != nil {
		return seen, err
	}
	var group errgroup.Group
	group.Go(func() (err error) {
		seen.scrape, err = scrapes(ctx, service.HTTP, f.Window)
		return err
	})
	group.Go(func() (err error) {
		seen.databaseShare, err = databaseShare(ctx, addrs[0], f.Window)
		return err
	})
	if err := group.Wait(); err != nil {
		return seen, err
	}
	after, err := look(ctx, service)
	if err != nil {
		return seen, err
	}
	for _, name := range []string{"agentstatsd_samples_refused_total", "agentstatsd_metadata_refused_keys_total", "agentstatsd_sessions_refused_total"} {
		if n := after.values[name]; n > 0 {
			return seen, fmt.Errorf("want %s to be 0, got %.0f", name, n)
		}
	}
	if n := after.values["agentstatsd_sessions"]; n != float64(f.Agents) {
		return seen, fmt.Errorf("want %d sessions, there are %.0f", f.Agents, n)
	}
	// What the looks and the profile need beyond the window is little.
	scale := f.Window.Seconds() / after.at.Sub(before.at).Seconds()
	seen.cpu = time.Duration(float64(after.cpu-before.cpu) * scale)
	seen.received = (after.values[messagesReceived] - before.values[messagesReceived]) * scale
	seen.sent = (after.values[messagesSent] - before.values[messagesSent]) * scale
	seen.bytes = int64(float64(after.read-before.read) * scale)
	seen.connections = f.Agents
	if f.Relayed {
		seen.connections = int(after.values["agentstatsd_relay_streams"])
	}
	seen.resident, err = service.RSS()
	return seen, err
}

// scrapeInterval is that of most who scrape.
const scrapeInterval = 30 * time.Second

// scrapes has the service scraped for a while as a Prometheus does, and returns how
// long the longest scrape took.
func scrapes(ctx context.Context, addr string, d time.Duration) (longest time.Duration, err error) {
	ticker := time.NewTicker(scrapeInterval)
	defer ticker.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); {
		began := time.Now()
		if err := scrapeOnce(ctx, addr); err != nil {
			return 0, fmt.Errorf("scrape: %w", err)
		}
		longest = max(longest, time.Since(began))
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return longest, nil
}

// scrapeOnce asks for text with gzip.
func scrapeOnce(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// await waits until all agents are connected, and for a while more.
func (f Fleet) await(ctx context.Context, service *Agentstatsd, agents *process.Process) error {
	deadline := time.Now().Add(fleetConnects)
	for {
		l, err := look(ctx, service)
		if err != nil {
			return err
		}
		n := l.values["agentstatsd_sessions"]
		if n == float64(f.Agents) {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%.0f of %d agents are connected after %s:\n%s", n, f.Agents, fleetConnects, agents.Log())
		}
		if err := pause(ctx, agents, 2*time.Second); err != nil {
			return err
		}
	}
	return pause(ctx, agents, f.Settle)
}

func pause(ctx context.Context, p *process.Process, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-p.Exited():
		return fmt.Errorf("the agents ended:\n%s", p.Log())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Counters of messages; those of the profile's and the scrapes' calls are of another
// method.
const (
	messagesReceived = "grpc_server_msg_received_total"
	messagesSent     = "grpc_server_msg_sent_total"
)

// looked is what the service says of itself, and the system of it.
type looked struct {
	at     time.Time
	cpu    time.Duration
	read   int64 // bytes, of which those of files are few
	values map[string]float64
}

// look reads a few of the service's own families: sums over their series, of gRPC
// those of agents' streams.
func look(ctx context.Context, service *Agentstatsd) (looked, error) {
	l := looked{values: make(map[string]float64)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+service.HTTP+"/metrics", nil)
	if err != nil {
		return l, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return l, fmt.Errorf("scrape: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		if !bytes.HasPrefix(line, []byte("agentstatsd_")) && !bytes.HasPrefix(line, []byte("grpc_server_msg_")) {
			continue
		}
		end := bytes.IndexAny(line, "{ ")
		name := string(line[:end])
		if strings.HasPrefix(name, "grpc_") && !bytes.Contains(line, []byte(`grpc_method="Connect"`)) && !bytes.Contains(line, []byte(`grpc_method="RelayAgents"`)) {
			continue
		}
		v, err := strconv.ParseFloat(string(line[bytes.LastIndexByte(line, ' ')+1:]), 64)
		if err != nil {
			return l, fmt.Errorf("scrape: %q: %w", line, err)
		}
		l.values[name] += v
	}
	if err := lines.Err(); err != nil {
		return l, fmt.Errorf("scrape: %w", err)
	}
	l.at = time.Now()
	if l.read, err = process.BytesRead(service.PID()); err != nil {
		return l, err
	}
	l.cpu, err = service.CPU()
	return l, err
}

// drivers are prefixes of the functions of the database's drivers.
var drivers = []string{"modernc.org/", "database/sql.", "github.com/jackc/pgx/"}

// databaseShare profiles the service for a while and returns the part of its time
// that has a driver on the stack.
func databaseShare(ctx context.Context, addr string, d time.Duration) (float64, error) {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, int(d.Seconds()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("profile: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return 0, fmt.Errorf("profile: %s: %s", resp.Status, text)
	}
	p, err := profile.Parse(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("profile: %w", err)
	}
	var all, database int64
	for _, s := range p.Sample {
		v := s.Value[len(s.Value)-1]
		all += v
		if calls(s, drivers) {
			database += v
		}
	}
	if all == 0 {
		return 0, errors.New("profile: it has no samples")
	}
	return float64(database) / float64(all), nil
}

// calls reports whether a function of one of the prefixes is on the stack.
func calls(s *profile.Sample, prefixes []string) bool {
	for _, l := range s.Location {
		for _, line := range l.Line {
			for _, prefix := range prefixes {
				if line.Function != nil && strings.HasPrefix(line.Function.Name, prefix) {
					return true
				}
			}
		}
	}
	return false
}

// discardWindow is how long a server that discards is measured: it has no longer periods.
func (f Fleet) discardWindow() time.Duration { return min(f.Window, time.Minute) }

// discard returns the time of a server that discards. It receives as many bytes and
// messages as the service did, on as many connections, and sends as many answers.
func (f Fleet) discard(ctx context.Context, seen fleetSeen) (time.Duration, error) {
	samples, err := samplesOf(int(float64(seen.bytes) / seen.received))
	if err != nil {
		return 0, err
	}
	args := SendersArgs{Count: seen.connections, Samples: samples, Acking: Some}
	server, err := process.StartSelf(ctx, "stream-discard", discardArgs{AckEvery: max(1, int(math.Round(seen.received/max(1, seen.sent))))}, &args.Target)
	if err != nil {
		return 0, err
	}
	defer server.Stop()
	senders, err := process.StartSelf(ctx, "stream-senders", args, nil)
	if err != nil {
		return 0, err
	}
	defer senders.Stop()
	before, err := server.CPU()
	if err != nil {
		return 0, err
	}
	paced := PacedArgs{Milliseconds: int(f.discardWindow().Milliseconds()), Rate: seen.received / f.Window.Seconds()}
	var tally Tally
	if err := senders.Call("paced", paced, &tally); err != nil {
		return 0, err
	}
	after, err := server.CPU()
	return after - before, err
}

// samplesOf returns how many samples a report of about so many bytes has, at least one.
func samplesOf(size int) (int, error) {
	const few, many = 10, 20
	a, err := load.NewTemplate(0, few, false)
	if err != nil {
		return 0, err
	}
	b, err := load.NewTemplate(0, many, false)
	if err != nil {
		return 0, err
	}
	each := (b.Size() - a.Size()) / (many - few)
	return max(1, few+(size-a.Size()+each/2)/each), nil
}
