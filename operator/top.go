package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/serpent"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const (
	// maxTopAgents is how many agents an answer has at most.
	maxTopAgents = 1000
	// topLines are those of a table beside its agents: the sums, an empty line, the names of
	// the columns, an empty line, who is missing, and the cursor.
	topLines = 6
)

func topCommand() *serpent.Command {
	c := &connection{}
	var by string
	var limit int64
	var interval time.Duration
	var once bool
	return &serpent.Command{
		Use:   "top",
		Short: "Show which agents use the most, live.",
		Long: "Messages, bytes and refused items are those of a second, series those in memory, of all replicas that are asked. On a terminal the " +
			"table is refreshed in its place, elsewhere one follows the other; with --json each line is a document. Ctrl-C ends it.\n\n" +
			"  agentstatsd top --by refused" + exitCodes,
		Options: c.options(
			serpent.Option{Flag: "by", Default: "series", Description: "What agents are ordered by.", Value: serpent.EnumOf(&by, "series", "messages", "bytes", "refused")},
			serpent.Option{
				Flag: "limit", Default: "0", Description: "Agents at most, up to 1000. 0: as many as fit on the terminal, else 20.",
				Value: optiontable.Within(&limit, 0, maxTopAgents),
			},
			serpent.Option{
				Flag: "interval", Default: "2s", Description: "Time that each table is of.",
				Value: optiontable.DurationWithin(&interval, time.Second, time.Minute),
			},
			serpent.Option{Flag: "once", Default: "false", Description: "Print one table and end.", Value: serpent.BoolOf(&once)},
		),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			screen := newTopScreen(inv.Stdout, a, by, int(limit))
			ctx, cancel := context.WithCancel(inv.Context())
			defer cancel()
			if err := a.top(ctx, by, screen.limit, interval, func(resp *agentstatsv1.TopAgentsResponse) error {
				if once {
					defer cancel()
				}
				return screen.show(resp)
			}); err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

// topEvent is an answer of a replica, or its end.
type topEvent struct {
	replica *replica
	resp    *agentstatsv1.TopAgentsResponse
	err     error
}

// top calls show each interval with what all replicas together have answered, until ctx
// ends, show fails, or no replica goes on. One that ends is away from then on, and of one
// that is late there is nothing in a table.
func (a *asked) top(ctx context.Context, by string, limit int, interval time.Duration, show func(*agentstatsv1.TopAgentsResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	events := make(chan topEvent)
	for _, r := range a.reached {
		wg.Go(func() {
			a.receiveTop(ctx, r, &agentstatsv1.TopAgentsRequest{By: by, Limit: int32(limit), Interval: durationpb.New(interval)}, events)
		})
	}
	newest := make(map[*replica]*agentstatsv1.TopAgentsResponse)
	patience := a.timeout + interval
	late := time.NewTimer(patience)
	defer late.Stop()
	for len(a.reached) > 0 {
		isLate := false
		select {
		case e := <-events:
			if e.err == nil {
				newest[e.replica] = e.resp
				break
			}
			e.replica.err = a.explain(e.replica, e.err)
			a.reached = slices.DeleteFunc(slices.Clone(a.reached), func(r *replica) bool { return r == e.replica })
			a.away = append(a.away, e.replica)
		case <-late.C:
			isLate = true
		case <-ctx.Done():
			return nil
		}
		if len(newest) > 0 && (isLate || len(newest) >= len(a.reached)) {
			if err := show(mergeTop(slices.Collect(maps.Values(newest)), by, limit)); err != nil {
				return err
			}
			clear(newest)
			patience = 2 * interval // from now on answers come each interval
			isLate = true
		}
		if isLate {
			late.Reset(patience)
		}
	}
	return codedError{exitNotAsked, a.awayError()}
}

// receiveTop sends the answers of a replica to events, and its end, until ctx ends.
func (a *asked) receiveTop(ctx context.Context, r *replica, req *agentstatsv1.TopAgentsRequest, events chan<- topEvent) {
	stream, err := r.admin.TopAgents(ctx, req)
	for {
		e := topEvent{replica: r, err: err}
		if err == nil {
			e.resp, err = stream.Recv()
			if e.err = err; errors.Is(err, io.EOF) {
				e.err = errors.New("it has ended the answer")
			}
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return
		}
		if e.err != nil {
			return
		}
	}
}

// mergeTop makes one answer of those of replicas. An agent that has moved is at two.
func mergeTop(all []*agentstatsv1.TopAgentsResponse, by string, limit int) *agentstatsv1.TopAgentsResponse {
	merged := &agentstatsv1.TopAgentsResponse{All: &agentstatsv1.AgentRates{}}
	var lists []answer[[]*agentstatsv1.TopAgent]
	for _, resp := range all {
		merged.At = later(merged.GetAt(), resp.GetAt())
		merged.Sending += resp.GetSending()
		addRates(merged.GetAll(), resp.GetAll())
		lists = append(lists, answer[[]*agentstatsv1.TopAgent]{value: resp.GetAgents()})
	}
	merged.Agents = mergeByKey(lists, (*agentstatsv1.TopAgent).GetId, func(a, b *agentstatsv1.TopAgent) *agentstatsv1.TopAgent {
		a.Series += b.GetSeries()
		if a.Rates == nil {
			a.Rates = &agentstatsv1.AgentRates{}
		}
		addRates(a.GetRates(), b.GetRates())
		return a
	})
	weight := func(a *agentstatsv1.TopAgent) float64 {
		switch by {
		case "messages":
			return a.GetRates().GetMessages()
		case "bytes":
			return a.GetRates().GetBytes()
		case "refused":
			return a.GetRates().GetRefused()
		}
		return a.GetSeries()
	}
	slices.SortFunc(merged.Agents, func(a, b *agentstatsv1.TopAgent) int {
		return cmp.Or(cmp.Compare(weight(b), weight(a)), cmp.Compare(a.GetId(), b.GetId()))
	})
	merged.Agents = merged.GetAgents()[:min(limit, len(merged.GetAgents()))]
	return merged
}

func addRates(to, rates *agentstatsv1.AgentRates) {
	to.Messages += rates.GetMessages()
	to.Bytes += rates.GetBytes()
	to.Refused += rates.GetRefused()
}

// topScreen shows one table after another.
type topScreen struct {
	w     io.Writer
	asked *asked
	by    string
	limit int
	// terminal: tables replace one another.
	terminal bool
	shown    int // tables so far
}

func newTopScreen(w io.Writer, a *asked, by string, limit int) *topScreen {
	s := &topScreen{w: w, asked: a, by: by, limit: limit, terminal: isTerminal(w) && !a.json}
	if s.limit > 0 {
		return s
	}
	s.limit = 20
	if f, ok := w.(*os.File); ok && s.terminal {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil {
			s.limit = min(max(1, height-topLines), maxTopAgents)
		}
	}
	return s
}

// Sequences of terminals: clear all and go to the first line; only go there; clear up to
// the end of the line; of the screen.
const (
	clearScreen = "\x1b[2J\x1b[H"
	toFirstLine = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

func (s *topScreen) show(resp *agentstatsv1.TopAgentsResponse) error {
	s.shown++
	if s.asked.json {
		text, err := inJSON.Marshal(resp)
		if err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		return json.NewEncoder(s.w).Encode(document{Asked: s.asked.documents(), Answer: text})
	}
	text := topText(resp, s.by)
	if err := s.asked.partial(true); err != nil {
		text += "\n" + err.Error() + "\n"
	}
	switch {
	case !s.terminal && s.shown > 1:
		text = "\n" + text
	case s.terminal:
		start := toFirstLine
		if s.shown == 1 {
			start = clearScreen
		}
		text = start + strings.ReplaceAll(text, "\n", clearLine+"\n") + clearBelow
	}
	return print(s.w, text)
}

func topText(resp *agentstatsv1.TopAgentsResponse, by string) string {
	text := fmt.Sprintf("%s  %s agents send %s messages/s, %s/s; %s items/s are refused\n\n", resp.GetAt().AsTime().Local().Format(time.TimeOnly),
		number(resp.GetSending()), rate(resp.GetAll().GetMessages()), size(resp.GetAll().GetBytes()), rate(resp.GetAll().GetRefused()))
	columns := []string{"AGENT", "TEMPLATE", "SERIES", "MESSAGES/S", "BYTES/S", "REFUSED/S"}
	for i, column := range columns {
		if strings.HasPrefix(column, strings.ToUpper(by)) {
			columns[i] += "*"
		}
	}
	t := newTable(columns...)
	for _, a := range resp.GetAgents() {
		t.row(agentName(a.GetOwner(), a.GetWorkspace(), a.GetName()), a.GetTemplate(), number(a.GetSeries()), rate(a.GetRates().GetMessages()),
			size(a.GetRates().GetBytes()), rate(a.GetRates().GetRefused()))
	}
	return text + t.String()
}

// rate returns how often something happens, with two digits.
func rate(perSecond float64) string {
	return strconv.FormatFloat(math.Round(perSecond*100)/100, 'f', -1, 64)
}
