// Command bench compares agentstatsd with what people would use in its place,
// and with the limits of the machine. It is run by make bench and make
// bench-peers.
//
//	bench [flags] run      measures, all but the peers
//	bench [flags] peers    measures the peers
//	bench [flags] render   makes the page and the picture anew
//
// Results are kept in results.json, of which RESULTS.md and results.svg are made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coder/agentstatsd/bench/bridged"
	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/bench/render"
	"github.com/coder/agentstatsd/bench/scrape"
	"github.com/coder/agentstatsd/bench/stream"
	"github.com/coder/agentstatsd/bench/update"
)

// commit of the checkout, set by the Makefile.
var commit string

func main() {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		exit(child(os.Args[2], os.Args[3]))
	}
	var o options
	flag.StringVar(&o.out, "out", "bench", "directory of the results")
	flag.StringVar(&o.agentstatsd, "agentstatsd", "bin/agentstatsd", "the binary of the service")
	flag.StringVar(&o.peers, "peers", "bin/peers", "directory of the peers' binaries")
	flag.StringVar(&o.only, "only", "", "sections to measure anew, separated by commas; the others keep their figures")
	flag.Usage = func() {
		_, _ = fmt.Fprintf(flag.CommandLine.Output(), "usage: bench [flags] run|peers|render\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(o.run(ctx, flag.Arg(0)))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child plays a role for a parent that is this program too.
func child(role, args string) error {
	roles := maps.Clone(scrape.Roles)
	maps.Copy(roles, stream.Roles)
	maps.Copy(roles, update.Roles)
	maps.Copy(roles, bridged.Roles)
	play, ok := roles[role]
	if !ok {
		return fmt.Errorf("there is no role %q", role)
	}
	return process.RunChild(context.Background(), play, args)
}

type options struct {
	out, agentstatsd, peers, only string
}

// longest is how long measuring may take, whatever hangs.
const longest = time.Hour

func (o options) run(ctx context.Context, command string) error {
	file := filepath.Join(o.out, "results.json")
	results, err := figure.Read(file)
	if err != nil {
		return err
	}
	var sections []section
	var part string
	switch command {
	case "run":
		part, sections = render.Bench, benchSections()
	case "peers":
		part, sections = render.Peers, peerSections()
	case "render":
		return o.render(results)
	default:
		return fmt.Errorf("unknown command %q", command)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errors.New("it took too long"))
	defer cancel()
	run, err := o.measure(ctx, results[part], sections)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	run.Modules = o.modules(part)
	results[part] = run
	if err := results.Write(file); err != nil {
		return err
	}
	return o.render(results)
}

// render makes what people read.
func (o options) render(results figure.Results) error {
	return errors.Join(
		figure.WriteFile(filepath.Join(o.out, "RESULTS.md"), render.Page(results)),
		figure.WriteFile(filepath.Join(o.out, "results.svg"), render.Picture(results)),
	)
}

// measure measures the sections that are asked for. before is the last run, whose
// figures of other sections are kept.
func (o options) measure(ctx context.Context, before *figure.Run, sections []section) (*figure.Run, error) {
	start := time.Now()
	run := &figure.Run{Date: start.UTC().Truncate(time.Second), Commit: commit, Machine: figure.ThisMachine()}
	wanted := func(s section) bool { return !s.asked }
	if o.only != "" {
		names := strings.Split(o.only, ",")
		wanted = func(s section) bool { return slices.Contains(names, s.name) }
	}
	if before != nil {
		run.Figures = before.Figures
		if o.only != "" {
			run.Notes = before.Notes
		}
	}
	dir, err := os.MkdirTemp("", "agentstatsd-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for files: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	for _, s := range sections {
		if !wanted(s) {
			continue
		}
		for _, figures := range s.figures {
			run.Drop(figures)
		}
		for _, step := range s.steps {
			fmt.Fprintf(os.Stderr, "%5.0f s  %s\n", time.Since(start).Seconds(), step.name)
			if err := step.measure(ctx, o, run, dir); err != nil {
				return nil, fmt.Errorf("%s: %w", step.name, err)
			}
		}
	}
	run.Seconds = time.Since(start).Round(time.Second).Seconds()
	fmt.Fprintf(os.Stderr, "%5.0f s  done\n", run.Seconds)
	return run, nil
}
