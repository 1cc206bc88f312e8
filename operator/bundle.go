package operator

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/serpent"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxCPUProfile is how long CollectBundle profiles at most.
	maxCPUProfile = 30 * time.Second
	// maxBundleBytes bounds what one replica's files take in memory.
	maxBundleBytes = 256 << 20
	// bundleRows are the rows of each list in a bundle.
	bundleRows = 1000
)

func bundleCommand() *serpent.Command {
	c := &connection{}
	var cpuProfile time.Duration
	return &serpent.Command{
		Use:   "support-bundle FILE",
		Short: "Write what somebody needs who looks for a fault: a tar.gz without names and secrets.",
		Long: "It has the log's last lines, metrics and profiles of each replica, and what this program's other commands ask for. Secrets are masked. " +
			"The names of owners, workspaces and agents are replaced, each by the same pseudonym in all files; nobody can try names, as the key is not kept. " +
			"Names of hosts, templates, families and labels stay. Values of metadata are not in it. Only its owner may read the file.\n\n" +
			"  agentstatsd support-bundle bundle.tar.gz" + exitCodes,
		Options: c.options(serpent.Option{
			Flag: "cpu-profile", Default: "5s", Description: "How long the CPU is profiled. 0: it is not.",
			Value: optiontable.DurationWithin(&cpuProfile, 0, maxCPUProfile),
		}),
		Middleware: oneArgument("one file name"),
		Handler: func(inv *serpent.Invocation) (err error) {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			path := inv.Args[0]
			file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists: name a new file", path)
			}
			if err != nil {
				return err
			}
			defer func() {
				if err = errors.Join(err, file.Close()); err != nil && ExitCode(err) != exitPartial {
					err = errors.Join(err, os.Remove(path))
				}
			}()
			files, missing := a.collect(inv.Context(), cpuProfile, progressOf(inv))
			if err := writeBundle(file, files, time.Now()); err != nil {
				return fmt.Errorf("write %s: %w", path, err)
			}
			if err := a.reportBundle(inv.Stdout, path, len(files), missing); err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

func (a *asked) reportBundle(w io.Writer, path string, files int, missing []string) error {
	if !a.json {
		text := fmt.Sprintf("wrote %s: %d files of %d replicas, without names and secrets\n", path, files, len(a.reached))
		for _, what := range missing {
			text += "missing: " + what + "\n"
		}
		return print(w, text)
	}
	return printJSON(w, struct {
		Asked []askedDocument `json:"asked"`
		File  string          `json:"file"`
		Files int             `json:"files"`
		// Missing is as in bundle.json.
		Missing []string `json:"missing"`
	}{a.documents(), path, files, missing})
}

// bundleFile is a file of a bundle.
type bundleFile struct {
	name string
	data []byte
}

// bundleDocument is bundle.json, the first file.
type bundleDocument struct {
	MadeAt time.Time       `json:"made_at"`
	Asked  []askedDocument `json:"asked"`
	// Missing is what a replica did not answer, with why.
	Missing []string `json:"missing"`
}

// collect returns the files of all replicas, with all names replaced, and what replicas did
// not answer.
func (a *asked) collect(ctx context.Context, cpuProfile time.Duration, progress func(string)) (files []bundleFile, missing []string) {
	p := newPseudonyms()
	progress("asking for the agents")
	collectors := make(map[*replica]*collector)
	var all []*collector
	for _, r := range a.reached {
		collectors[r] = &collector{asked: a, replica: r, cpuProfile: cpuProfile, progress: progress}
		all = append(all, collectors[r])
	}
	// One that does not list its agents may be the one that is looked at: the rest is asked for.
	each(ctx, a.connection, a.reached, func(ctx context.Context, r *replica) { collectors[r].listAgents(ctx) })
	var wg sync.WaitGroup
	for _, c := range all {
		p.learn(c.agents)
		wg.Go(func() { c.collect(ctx) })
	}
	wg.Wait()
	progress("")
	// A name that is seen in one file may be in any file before.
	for range 2 {
		for _, c := range all {
			c.replaceNames(p)
		}
	}
	missing = []string{}
	for _, c := range all {
		files, missing = append(files, c.files...), append(missing, c.missing...)
		for _, m := range c.answers {
			text, err := inJSON.Marshal(m.message)
			if err != nil {
				missing = append(missing, fmt.Sprintf("%s: %v", m.name, err))
				continue
			}
			files = append(files, bundleFile{m.name, indented(text)})
		}
	}
	slices.SortFunc(files, func(a, b bundleFile) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(missing)
	about, _ := json.MarshalIndent(bundleDocument{time.Now().UTC(), a.documents(), missing}, "", "  ") // of texts
	return append([]bundleFile{{"bundle.json", append(about, '\n')}}, files...), missing
}

// isProfile reports whether a file has no names: those in it are of code.
func isProfile(name string) bool {
	return strings.HasSuffix(name, ".pprof") || strings.HasSuffix(name, "/goroutines.txt")
}

// indented returns JSON for people.
func indented(text json.RawMessage) []byte {
	out, err := json.MarshalIndent(text, "", "  ")
	if err != nil {
		return text
	}
	return append(out, '\n')
}

// collector asks one replica for all that a bundle has of it.
type collector struct {
	*asked
	*replica
	cpuProfile time.Duration
	progress   func(string)
	agents     []*agentstatsv1.AgentSummary

	answers []namedMessage
	files   []bundleFile
	missing []string
}

// namedMessage is an answer, and the name of its file.
type namedMessage struct {
	name    string
	message proto.Message
}

// unsafeInNames are characters that names of files do not have here.
var unsafeInNames = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// file returns the name of a file in the replica's directory.
func (c *collector) file(name string) string {
	dir := unsafeInNames.ReplaceAllString(c.label(), "_")
	if c.self.GetId() != "" { // two replicas may have one name
		dir += "-" + unsafeInNames.ReplaceAllString(c.self.GetId(), "_")[:min(8, len(c.self.GetId()))]
	}
	return strings.TrimLeft(dir, ".") + "/" + strings.TrimLeft(unsafeInNames.ReplaceAllString(name, "_"), ".")
}

// keep keeps an answer, or why there is none.
func keep[T proto.Message](c *collector, name string, message T, err error) {
	if err != nil {
		c.missing = append(c.missing, fmt.Sprintf("%s: %v", c.file(name), c.explain(c.replica, err)))
		return
	}
	c.answers = append(c.answers, namedMessage{c.file(name), message})
}

// listAgents asks for all agents.
func (c *collector) listAgents(ctx context.Context) {
	var err error
	c.agents, err = allAgents(ctx, c.admin, &agentstatsv1.SearchAgentsRequest{})
	keep(c, "agents.json", &agentstatsv1.SearchAgentsResponse{Agents: c.agents, Total: float64(len(c.agents))}, err)
}

func (c *collector) collect(ctx context.Context) {
	// One after another, each with its own time: a replica is not to be busy with it.
	within := func(ask func(ctx context.Context)) {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		ask(ctx)
	}
	c.progress("asking " + c.label() + " for its answers")
	within(func(ctx context.Context) {
		m, err := c.admin.GetStatus(ctx, &agentstatsv1.GetStatusRequest{})
		keep(c, "status.json", m, err)
	})
	within(func(ctx context.Context) {
		m, err := c.admin.GetConfig(ctx, &agentstatsv1.GetConfigRequest{})
		keep(c, "config.json", m, err)
	})
	within(func(ctx context.Context) {
		m, err := c.admin.GetHistory(ctx, &agentstatsv1.GetHistoryRequest{})
		keep(c, "history.json", m, err)
	})
	within(func(ctx context.Context) {
		m, err := c.admin.ListRefusals(ctx, &agentstatsv1.ListRefusalsRequest{Limit: bundleRows})
		keep(c, "refusals.json", m, err)
	})
	within(func(ctx context.Context) {
		m, err := c.admin.ListPushes(ctx, &agentstatsv1.ListPushesRequest{})
		keep(c, "pushes.json", m, err)
	})
	for _, by := range []string{"family", "label", "template", "owner", "workspace", "agent"} {
		within(func(ctx context.Context) {
			m, err := c.admin.GetCardinality(ctx, &agentstatsv1.GetCardinalityRequest{By: by, Limit: maxCardinalityRows})
			keep(c, "cardinality-"+by+".json", m, err)
		})
	}
	within(func(ctx context.Context) {
		m, err := c.admin.GetCost(ctx, &agentstatsv1.GetCostRequest{})
		keep(c, "cost.json", m, err)
	})
	if c.cpuProfile > 0 {
		c.progress(fmt.Sprintf("profiling %s for %s", c.label(), c.cpuProfile))
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout+c.cpuProfile)
	defer cancel()
	if err := c.receiveFiles(ctx); err != nil {
		c.missing = append(c.missing, fmt.Sprintf("%s: %v", c.file("files"), c.explain(c.replica, err)))
	}
}

// replaceNames replaces the names in all that was collected.
func (c *collector) replaceNames(p *pseudonyms) {
	for _, m := range c.answers {
		p.message(m.message)
	}
	for i, f := range c.files {
		if !isProfile(f.name) {
			c.files[i].data = []byte(p.text(string(f.data)))
		}
	}
	for i, what := range c.missing {
		c.missing[i] = p.text(what)
	}
}

// receiveFiles receives what CollectBundle streams.
func (c *collector) receiveFiles(ctx context.Context) error {
	req := &agentstatsv1.CollectBundleRequest{}
	if c.cpuProfile > 0 {
		req.CpuProfile = durationpb.New(c.cpuProfile)
	}
	stream, err := c.admin.CollectBundle(ctx, req)
	if err != nil {
		return err
	}
	for size := 0; ; {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if size += len(part.GetData()); size > maxBundleBytes {
			return fmt.Errorf("it sends more than %d bytes", maxBundleBytes)
		}
		name := c.file(part.GetName())
		if n := len(c.files); n == 0 || c.files[n-1].name != name {
			c.files = append(c.files, bundleFile{name: name})
		}
		last := &c.files[len(c.files)-1]
		last.data = append(last.data, part.GetData()...)
	}
}

// writeBundle writes files as a tar.gz.
func writeBundle(w io.Writer, files []bundleFile, now time.Time) error {
	compressed := gzip.NewWriter(w)
	archive := tar.NewWriter(compressed)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: 0o600, Size: int64(len(f.data)), ModTime: now.Truncate(time.Second)}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		if _, err := archive.Write(f.data); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), compressed.Close())
}
