package stream

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
)

// IdleSection of the figures.
const IdleSection = "idle streams"

// Metrics of an idle stream.
const (
	// HeldPerStream is resident after what is not in use was given back, and
	// ResidentPerStream before that, with garbage of the connecting.
	HeldPerStream     = "held, bytes a stream"
	ResidentPerStream = "with garbage, bytes a stream"
	// HeldAfterReport is held after a report of 30 samples on each stream.
	HeldAfterReport = "held after a report, bytes a stream"
)

// IdleSubjects are the service and the server that does nothing.
var IdleSubjects = []string{Fast, Discard}

// IdleCase names the figures of streams with and without TLS.
func IdleCase(tls bool) string {
	if tls {
		return "TLS"
	}
	return "plaintext"
}

// streamsPerProcess is how many connections a process of senders has: its files
// are limited.
const streamsPerProcess = 5000

// quiet is how long what comes after a command may take.
const quiet = 2 * time.Second

// Idle compares what streams take that say nothing, each on a connection of its
// own, and adds the figures to run.
func Idle(ctx context.Context, run *figure.Run, dir string, streams int, tls bool) error {
	for _, subject := range IdleSubjects {
		if err := idle(ctx, run, dir, subject, streams, tls); err != nil {
			return fmt.Errorf("%s, %s: %w", subject, IdleCase(tls), err)
		}
	}
	return nil
}

func idle(ctx context.Context, run *figure.Run, dir, subject string, streams int, tls bool) error {
	var cert, key string
	if tls {
		var err error
		if cert, key, err = writeCertificate(dir); err != nil {
			return err
		}
	}
	server, target, err := startIdle(ctx, dir, subject, streams, cert, key)
	if err != nil {
		return err
	}
	defer server.Stop()
	before, err := held(server)
	if err != nil {
		return err
	}
	var all []*process.Child
	defer func() {
		for _, c := range all {
			c.Stop()
		}
	}()
	for first := 0; first < streams; first += streamsPerProcess {
		acking := Never
		if subject == Fast {
			acking = Always
		}
		c, err := process.StartSelf(ctx, "stream-senders", SendersArgs{
			Target: target, First: first, Count: min(streamsPerProcess, streams-first),
			Samples: Samples, Acking: acking, CA: cert,
		}, nil)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	time.Sleep(quiet)
	add := func(metric string, after int64) {
		run.Add(figure.Key{Section: IdleSection, Case: IdleCase(tls), Subject: subject, Metric: metric},
			float64(after-before)/float64(streams))
	}
	resident, err := server.RSS()
	if err != nil {
		return err
	}
	add(ResidentPerStream, resident)
	after, err := held(server)
	if err != nil {
		return err
	}
	add(HeldPerStream, after)
	for _, c := range all {
		if err := c.Call("busy", BusyArgs{Reports: 1}, nil); err != nil {
			return fmt.Errorf("%w\nlog of the server:\n%s", err, server.Log())
		}
	}
	if after, err = held(server); err != nil {
		return err
	}
	add(HeldAfterReport, after)
	return nil
}

// held returns what is resident once what is not in use is given back.
func held(server *process.Child) (int64, error) {
	time.Sleep(quiet)
	if err := server.Call("free", nil, nil); err != nil {
		return 0, err
	}
	return server.RSS()
}

// benchToken is coderd's in services within children.
const benchToken = "the token of the bench's coderd"

func startIdle(ctx context.Context, dir, subject string, streams int, cert, key string) (*process.Child, string, error) {
	if subject == Discard {
		var target string
		c, err := process.StartSelf(ctx, "stream-discard", discardArgs{Cert: cert, Key: key}, &target)
		return c, target, err
	}
	data, err := os.MkdirTemp(dir, "idle-")
	if err != nil {
		return nil, "", fmt.Errorf("make a data directory: %w", err)
	}
	var ready serviceReady
	c, err := process.StartSelf(ctx, "stream-service", serviceArgs{Dir: data, Token: benchToken, Cert: cert, Key: key}, &ready)
	if err != nil {
		return nil, "", err
	}
	if err := Register(ctx, ready.GRPC, benchToken, cert, streams); err != nil {
		c.Stop()
		return nil, "", err
	}
	return c, ready.GRPC, nil
}
