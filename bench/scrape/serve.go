// Package scrape compares scrapes of the same series: what the service takes,
// what the usual libraries take, and what copying the bytes takes.
package scrape

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/scrape"
)

// Roles that children play, by subject.
var Roles = map[string]process.Role{
	"scrape-" + Agentstatsd: role(serveAgentstatsd),
	"scrape-" + Collector:   role(serveCollector(func(agents int) prometheus.Collector { return newCollector(agents) })),
	"scrape-" + CoderdWay:   role(serveCollector(func(agents int) prometheus.Collector { return newCoderdCollector(agents) })),
	"scrape-" + GaugeVec:    role(serveGaugeVec),
	"scrape-" + Victoria:    role(serveVictoria),
	"scrape-" + Copy:        serveCopy,
}

// Subjects of the comparison.
const (
	// Agentstatsd with new values of all series at each scrape, Unchanged with
	// none.
	Agentstatsd = "agentstatsd"
	Unchanged   = "agentstatsd, nothing new"
	Collector   = "client_golang, Collector of const metrics"
	// CoderdWay holds them in a map, and makes descriptors at each scrape too.
	CoderdWay = "client_golang, Collector as coderd's"
	GaugeVec  = "client_golang, GaugeVec"
	Victoria  = "VictoriaMetrics/metrics"
	Copy      = "copy limit"
)

// role makes a role of a function that serves that many series.
func role(f func(ctx context.Context, c *process.Console, series int) error) process.Role {
	return func(ctx context.Context, c *process.Console) error {
		var series int
		if err := c.Args(&series); err != nil {
			return err
		}
		return f(ctx, c, series)
	}
}

// serve serves a handler on a free port, and the console, until that ends.
func serve(ctx context.Context, c *process.Console, h http.Handler, commands map[string]process.Handler) error {
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	lis = scrape.GatherWrites(server, lis)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(lis) }()
	err = c.Serve(lis.Addr().String(), commands)
	_ = server.Close()
	if serveErr := <-ended; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve: %w", serveErr))
	}
	return err
}

// serveCopy serves recorded answers of the service from files, one for each kind of
// request. That takes what a scrape would take if bytes were only copied to the
// connection.
func serveCopy(ctx context.Context, c *process.Console) error {
	var files map[string]string
	if err := c.Args(&files); err != nil {
		return err
	}
	bodies := make(map[string]*body)
	for ask, file := range files {
		b, err := readBody(file)
		if err != nil {
			return err
		}
		bodies[ask] = b
	}
	return serve(ctx, c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ask := Ask{Format: Text, Gzip: r.Header.Get("Accept-Encoding") == "gzip"}
		if r.Header.Get("Accept") == accepts[Protobuf] {
			ask.Format = Protobuf
		}
		b, ok := bodies[ask.String()]
		if !ok {
			http.Error(w, "not kept: "+ask.String(), http.StatusNotFound)
			return
		}
		for _, name := range []string{"Content-Type", "Content-Encoding"} {
			if v := b.header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(b.text)))
		_, _ = w.Write(b.text)
	}), heapSince(0))
}

type body struct {
	header http.Header
	text   []byte
}

// readBody reads a whole answer, headers and all.
func readBody(file string) (*body, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read a kept answer: %w", err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), nil)
	if err != nil {
		return nil, fmt.Errorf("read a kept answer: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	b := &body{header: resp.Header}
	if b.text, err = io.ReadAll(resp.Body); err != nil {
		return nil, fmt.Errorf("read a kept answer: %w", err)
	}
	return b, nil
}
