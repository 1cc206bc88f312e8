package simulation

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/coder/agentstatsd/agent"
)

// checkAlways checks what must be so at any time.
func (w *world) checkAlways() error {
	c := w.coderd
	c.mu.Lock()
	err := c.violated
	c.mu.Unlock()
	if err != nil {
		return err
	}
	registered := w.db.Agents()
	for _, a := range w.agents[1:] {
		if !slices.Contains(registered, a.reg.ID) {
			continue
		}
		for _, part := range sortedParts(a.acked) {
			if err := w.checkAcked(a, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLedgers checks what the processes count.
func (w *world) checkLedgers() error {
	if err := errors.Join(w.checkPushed(false), w.checkWatched(false), w.checkGauges(), w.checkIntervals(false)); err != nil {
		return err
	}
	for _, p := range w.slots {
		if !p.serving {
			continue
		}
		if err := p.checkLaw(); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if w.step%25 != 0 {
			continue
		}
		if err := p.checkCounters(); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// checkAcked checks that what is stored of a part is at least as new as what was
// acked of it.
func (w *world) checkAcked(a *simAgent, part string) error {
	text := w.stored(a.reg.ID, part)
	said := a.said[part]
	for i := len(said) - 1; i >= 0; i-- {
		if said[i].text == text {
			if said[i].index < a.acked[part] {
				break
			}
			if part == lifecycle {
				return w.checkStarted(a, said[:i+1])
			}
			return nil
		}
	}
	return fmt.Errorf("agent %d: value %d of %s was acked as durable, but %q is stored; said was %v",
		a.number, a.acked[part], part, text, said[max(0, len(said)-8):])
}

// checkStarted checks the stored start. It must be that of the newest of these
// lifecycles, if its beginning was acked, or a later one. A start can be stored
// although its lifecycle lost.
func (w *world) checkStarted(a *simAgent, said []value) error {
	for i := len(said) - 1; i >= 0; i-- {
		if !isStart(said[i]) {
			continue
		}
		began := parseLifecycle(said[i].text).ChangedAt
		is := w.db.State(a.reg.ID).Startup.StartedAt
		later := slices.ContainsFunc(a.said[lifecycle], func(v value) bool {
			return v.index > a.started && isStart(v) && parseLifecycle(v.text).ChangedAt.Equal(is)
		})
		if said[i].index == a.started && !is.Equal(began) && !later {
			return fmt.Errorf("agent %d: start %d at %s was acked as durable, but %s is stored", a.number, a.started, clock(began), clock(is))
		}
		break
	}
	return nil
}

// stored returns what the database has of a part, as its values are written.
func (w *world) stored(id agent.ID, part string) string {
	if key, is := strings.CutPrefix(part, meta); is {
		m, _ := w.db.Value(id, key)
		return m.Value
	}
	return textOf(w.db.State(id), part)
}

// textOf returns a part of a state, as its values are written.
func textOf(st agent.State, part string) string {
	switch {
	case strings.HasPrefix(part, health):
		return string(st.AppHealth[appID(part)])
	case part == lifecycle:
		return lifecycleText(st.Lifecycle)
	}
	return fmt.Sprint(st.Network.NodeID)
}

// checkLaw checks that each entry of metadata is somewhere.
func (p *process) checkLaw() error {
	collected := make(chan prometheus.Metric, 100)
	p.metadata.ledger.Collect(collected)
	close(collected)
	var received, others float64
	for metric := range collected {
		var m dto.Metric
		if err := metric.Write(&m); err != nil {
			return err
		}
		switch {
		case strings.Contains(metric.Desc().String(), `"agentstatsd_metadata_pending"`):
			others += m.GetGauge().GetValue()
		case !strings.Contains(metric.Desc().String(), `"`+ledgerFamily+`"`):
		case m.GetLabel()[0].GetValue() == "received":
			received += m.GetCounter().GetValue()
		default:
			others += m.GetCounter().GetValue()
		}
	}
	if received != others {
		return fmt.Errorf("the law: %v received, %v elsewhere", received, others)
	}
	return nil
}

// checkCounters checks that no counter of the process fell.
func (p *process) checkCounters() error {
	for _, r := range p.registries {
		families, err := r.Gather()
		if err != nil {
			return err
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				var v float64
				switch f.GetType() {
				case dto.MetricType_COUNTER:
					v = m.GetCounter().GetValue()
				case dto.MetricType_HISTOGRAM:
					v = float64(m.GetHistogram().GetSampleCount())
				default:
					continue
				}
				name := f.GetName() + labelsOf(m)
				if v < p.counters[name] {
					return fmt.Errorf("%s fell from %v to %v", name, p.counters[name], v)
				}
				p.counters[name] = v
			}
		}
	}
	return nil
}

func labelsOf(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		fmt.Fprintf(&b, ",%s=%s", l.GetName(), l.GetValue())
	}
	return b.String()
}

// checkQuiescent checks what must be so a while after all was mended.
func (w *world) checkQuiescent() error {
	registered := w.db.Agents()
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	leaders := 0
	var sharing []agent.ID
	for _, p := range w.slots {
		sharing = append(sharing, p.id)
	}
	slices.SortFunc(sharing, func(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) })
	for _, p := range w.slots {
		if got := p.replicas.Sharing(); !slices.Equal(got, sharing) {
			fail("%s has %v share, want %v", p.name, got, sharing)
		}
		switch {
		case p.fleet.Ready() != nil:
			fail("%s has not loaded", p.name)
			return errors.Join(errs...)
		case !p.replicas.Member():
			fail("%s takes itself for gone", p.name)
		case p.replicas.Leads():
			leaders++
		}
	}
	if leaders != 1 {
		fail("%d replicas lead", leaders)
	}
	for _, a := range w.agents[1:] {
		is := slices.Contains(registered, a.reg.ID)
		if c := a.client; c != nil {
			switch {
			case c.session == nil && w.getsIn(a):
				fail("%s has no session", c)
			case !is && c.session != nil:
				fail("%s has a session, but the agent is not registered", c)
			case c.session != nil && len(c.sent) > 0:
				fail("%s: not acked after %v: %s", c, quiesceTime, c.partsSent())
			case c.session != nil && c.removals != a.removals:
				fail("%s has a session from before the agent was removed", c)
			}
		}
		if is {
			errs = append(errs, w.checkAgreed(a)...)
		}
	}
	for _, z := range w.zombies {
		select {
		case <-z.session.Done():
		default:
			if time := z.session.Info().Epoch; z.agent.client != nil && z.agent.client.session != nil || z.removals != z.agent.removals {
				fail("agent %d has an older session on %s (epoch %d) beside its own", z.agent.number, z.on.name, time)
			}
		}
	}
	errs = append(errs, w.checkServed(registered)...)
	return errors.Join(errs...)
}

// checkAgreed checks that all replicas say of an agent what the database does.
func (w *world) checkAgreed(a *simAgent) (errs []error) {
	stored, reg := w.db.State(a.reg.ID), w.db.Registration(a.reg.ID)
	w.coderd.mu.Lock()
	said := w.coderd.said[a.reg.ID]
	w.coderd.mu.Unlock()
	if has := partsOf(&reg); has != has.with(said) || has.token != said.token {
		errs = append(errs, fmt.Errorf("agent %d: stored is %+v, coderd said %+v", a.number, has, said))
	}
	for _, p := range w.slots {
		info, err := p.fleet.Agent(a.reg.ID)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: agent %d is registered: %w", p.name, a.number, err))
			continue
		}
		if !info.Registration.Equal(&reg) {
			errs = append(errs, fmt.Errorf("%s: agent %d: is registered as %+v, stored is %+v", p.name, a.number, *info.Registration, reg))
		}
		connected := a.client != nil && a.client.session != nil || w.hasZombie(a)
		if info.Connected != connected {
			errs = append(errs, fmt.Errorf("%s: agent %d: connected is %v", p.name, a.number, info.Connected))
		}
		for _, part := range []string{lifecycle, network, health + "a", health + "b", health + "c"} {
			if is, want := textOf(info.State, part), textOf(stored, part); is != want {
				errs = append(errs, fmt.Errorf("%s: agent %d: %s is %q, stored is %q", p.name, a.number, part, is, want))
			}
		}
		if is, want := info.State.Startup, stored.Startup; !is.StartedAt.Equal(want.StartedAt) || !is.ReadyAt.Equal(want.ReadyAt) || is.Result != want.Result {
			errs = append(errs, fmt.Errorf("%s: agent %d: startup is %v, stored is %v", p.name, a.number, is, want))
		}
	}
	return errs
}

// hasZombie reports whether the agent has a session whose process is gone without a
// word: its replica takes it for connected.
func (w *world) hasZombie(a *simAgent) bool {
	return slices.ContainsFunc(w.zombies, func(z zombie) bool {
		if z.agent != a {
			return false
		}
		select {
		case <-z.session.Done():
			return false
		default:
			return true
		}
	})
}

// checkServed checks that each agent is served by exactly one replica.
func (w *world) checkServed(registered []agent.ID) (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	connections := make(map[string][]string)
	up := make(map[string][]string)
	shares := make(map[string]map[string]bool) // of each workspace, who serves what is not connected
	stats := make(map[string][]string)
	share := func(workspace string, p *process) {
		if shares[workspace] == nil {
			shares[workspace] = make(map[string]bool)
		}
		shares[workspace][p.name] = true
	}
	for _, p := range w.slots {
		var text bytes.Buffer
		if err := p.series.WriteText(&text); err != nil {
			fail("%s: %w", p.name, err)
		}
		for line := range strings.Lines(text.String()) {
			line = strings.TrimSpace(line)
			switch family, _, _ := strings.Cut(line, "{"); family {
			case "coderd_agents_connections":
				who := label(line, "agent_name")
				connections[who] = append(connections[who], p.name+": "+label(line, "status"))
				if label(line, "status") != "connected" {
					share(label(line, "workspace_name"), p)
				}
			case "coderd_agents_up":
				who := label(line, "workspace_name")
				up[who] = append(up[who], p.name+": "+line[strings.LastIndexByte(line, ' ')+1:])
				if strings.HasSuffix(line, " 0") {
					share(who, p)
				}
			case "app_requests":
				who := label(line, "agent_name")
				stats[who] = append(stats[who], p.name)
			}
		}
	}
	for _, workspace := range slices.Sorted(maps.Keys(shares)) {
		if len(shares[workspace]) > 1 {
			fail("workspace %s: what is not connected is served by %v", workspace, slices.Sorted(maps.Keys(shares[workspace])))
		}
	}
	online := make(map[string]int)
	for _, a := range w.agents[1:] {
		is, connected := slices.Contains(registered, a.reg.ID), a.client != nil && a.client.session != nil || w.hasZombie(a)
		lines := connections[a.reg.Name]
		switch {
		case !is && len(lines) > 0:
			fail("agent %d is not registered, but served: %v", a.number, lines)
		case is && len(lines) != 1:
			fail("agent %d is served %d times: %v", a.number, len(lines), lines)
		case is && connected != strings.HasSuffix(lines[0], ": connected"):
			fail("agent %d: connected is %v, but served is %v", a.number, connected, lines)
		}
		if is {
			online[a.reg.Workspace.Name] += 0
		}
		if is && connected {
			online[a.reg.Workspace.Name]++
		}
		c := a.client
		switch n := len(stats[a.reg.Name]); {
		case n > 1:
			fail("agent %d: its series are served %d times: %v", a.number, n, stats[a.reg.Name])
		case !is && n > 0:
			fail("agent %d is not registered, but its series are served by %v", a.number, stats[a.reg.Name])
		case is && c != nil && c.session != nil && !c.reported.IsZero() && n == 0:
			fail("agent %d: its series are not served", a.number)
		}
	}
	for _, workspace := range slices.Sorted(maps.Keys(online)) {
		lines := up[workspace]
		if len(lines) != 1 || !strings.HasSuffix(lines[0], fmt.Sprintf(": %d", online[workspace])) {
			// Agents of a workspace may be on several replicas: their counts add up.
			sum := 0
			for _, line := range lines {
				var n int
				_, _ = fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n)
				sum += n
			}
			if sum != online[workspace] || len(lines) == 0 {
				fail("workspace %s: %d agents are connected, but served is %v", workspace, online[workspace], lines)
			}
		}
	}
	return errs
}

// label returns the value of a label of a line.
func label(line, name string) string {
	_, rest, _ := strings.Cut(line, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}
