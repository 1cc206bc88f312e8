// Package bridged measures what an agent takes that connects to coderd through a bridge.
package bridged

import (
	"context"
	"fmt"
	"time"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/stream"
)

// Section of the figures.
const Section = "bridge"

// Subjects.
const (
	// Direct is no proxy: agents connect to coderd.
	Direct = "none"
	// Plain is httputil.ReverseProxy.
	Plain = "httputil.ReverseProxy"
	// Passing is a bridge that decodes nothing, as agents say that they speak another
	// version. Decoding is one that relays nothing, and Relaying one with the service.
	Passing  = "bridge, decoding off"
	Decoding = "bridge, decoding on"
	Relaying = "bridge, relaying"
)

// Subjects in the order in which they are measured.
var Subjects = []string{Direct, Plain, Passing, Decoding, Relaying}

// Metrics.
const (
	CPU = "CPU, ms an agent-minute"
	// Held is resident once what is not in use was given back.
	Held = "held, bytes a connection"
	// P50 and P99 are percentiles of the time of a call, Added what 99 of 100 calls take
	// beyond those without a proxy.
	P50   = "median of a call, ms"
	P99   = "99th percentile of a call, ms"
	Added = "added to the 99th percentile, ms"
)

// Load is how many agents there are, and what they do.
type Load struct {
	Connections, Rounds int
	// Settle is the time between the connect of all and the measurement, which takes
	// Window. Agents make as many calls as Coder's own.
	Settle, Window time.Duration
	// Quiet is how long what comes after a command may take.
	Quiet time.Duration
}

// Case names the figures of so many connections.
func Case(connections int) string { return fmt.Sprintf("%d connections", connections) }

// Measure adds the figures of all subjects to run.
func Measure(ctx context.Context, run *figure.Run, binary, dir string, l Load) error {
	for range l.Rounds {
		var direct float64
		for _, subject := range Subjects {
			seen, err := l.measure(ctx, subject, binary, dir)
			if err != nil {
				return fmt.Errorf("%s: %w", subject, err)
			}
			add := func(metric string, v float64) {
				run.Add(figure.Key{Section: Section, Case: Case(l.Connections), Subject: subject, Metric: metric}, v)
			}
			add(P50, seen.calls.P50)
			add(P99, seen.calls.P99)
			if subject == Direct {
				direct = seen.calls.P99
				continue
			}
			add(Added, seen.calls.P99-direct)
			add(CPU, float64(seen.cpu)/float64(time.Millisecond)/(float64(l.Connections)*l.Window.Minutes()))
			add(Held, float64(seen.held)/float64(l.Connections))
		}
	}
	return nil
}

// seen is what was seen of a subject.
type seen struct {
	cpu   time.Duration
	held  int64 // bytes, of all connections
	calls Tally
}

func (l Load) measure(ctx context.Context, subject, binary, dir string) (s seen, err error) {
	var coderd string
	upstream, err := process.StartSelf(ctx, "bridged-coderd", coderdArgs{Agents: l.Connections}, &coderd)
	if err != nil {
		return s, err
	}
	defer upstream.Stop()
	target, proxy, stop, err := l.startProxy(ctx, subject, coderd, binary, dir)
	if err != nil {
		return s, err
	}
	defer stop()
	var before int64
	if proxy != nil {
		if before, err = l.held(proxy); err != nil {
			return s, err
		}
	}
	args := agentsArgs{Target: target, Count: l.Connections}
	if subject == Passing {
		args.Version = "1.0"
	}
	agents, err := process.StartSelf(ctx, "bridged-agents", args, nil)
	if err != nil {
		return s, err
	}
	defer agents.Stop()
	window := callsArgs{Milliseconds: int(l.Settle.Milliseconds())}
	if err := agents.Call("calls", window, nil); err != nil {
		return s, err
	}
	var began time.Duration
	if proxy != nil {
		if began, err = proxy.CPU(); err != nil {
			return s, err
		}
	}
	window.Milliseconds = int(l.Window.Milliseconds())
	if err := agents.Call("calls", window, &s.calls); err != nil || proxy == nil {
		return s, err
	}
	ended, err := proxy.CPU()
	if err != nil {
		return s, err
	}
	after, err := l.held(proxy)
	s.cpu, s.held = ended-began, after-before
	return s, err
}

// startProxy starts what agents connect to, and returns its address, and its process; nil:
// it is coderd itself.
func (l Load) startProxy(ctx context.Context, subject, coderd, binary, dir string) (target string, proxy *process.Child, stop func(), err error) {
	args := proxyArgs{Upstream: coderd}
	stop = func() {}
	switch subject {
	case Direct:
		return coderd, nil, stop, nil
	case Plain:
	default:
		args.Bridge = true
		// A bridge that relays nothing has a service, too, which does not answer.
		args.Service, args.Token, args.MaxRelayed = "127.0.0.1:1", "none", 1
		if subject == Relaying {
			service, err := stream.StartAgentstatsd(ctx, binary, dir)
			if err != nil {
				return "", nil, nil, err
			}
			stop = service.Stop
			if err := stream.Register(ctx, service.GRPC, service.Token, "", l.Connections); err != nil {
				stop()
				return "", nil, nil, err
			}
			args.Service, args.Token, args.MaxRelayed = service.GRPC, service.Token, l.Connections
		}
	}
	child, err := process.StartSelf(ctx, "bridged-proxy", args, &target)
	if err != nil {
		stop()
		return "", nil, nil, err
	}
	stopService := stop
	return target, child, func() { child.Stop(); stopService() }, nil
}

// held returns what is resident once what is not in use is given back.
func (l Load) held(child *process.Child) (int64, error) {
	time.Sleep(l.Quiet)
	if err := child.Call("free", nil, nil); err != nil {
		return 0, err
	}
	return child.RSS()
}
