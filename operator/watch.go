package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/coder/serpent"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func watchCommand() *serpent.Command {
	c := &connection{}
	var duration time.Duration
	return &serpent.Command{
		Use:   "watch NAME",
		Short: "Show what an agent sends, from now on.",
		Long: agentNames + " It is watched at all replicas, as it may move. With --json each line is a document. Values of metadata are not shown. " +
			"Ctrl-C ends it.\n\n  agentstatsd watch ada/dev" + exitCodes,
		Options: c.options(serpent.Option{
			Flag: "for", Default: "0s", Description: "Time to watch. 0: until it is stopped.", Value: optiontable.NotBelow(&duration, 0),
		}),
		Middleware: oneArgument("one agent"),
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			// Without a deadline, which a replica might notice first and call a failure.
			ctx, cancel := context.WithCancel(inv.Context())
			defer cancel()
			if duration > 0 {
				defer time.AfterFunc(duration, cancel).Stop()
			}
			w := &watchWriter{w: inv.Stdout, json: c.json}
			if err := a.watch(ctx, inv.Args[0], w.write); err != nil {
				return err
			}
			return a.partial(true)
		},
	}
}

// watch calls write for each event of an agent at any replica, in several goroutines, until
// ctx ends or no replica goes on.
func (a *asked) watch(ctx context.Context, name string, write func(*replica, *agentstatsv1.WatchAgentResponse) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, len(a.reached))
	var wg sync.WaitGroup
	for i, r := range a.reached {
		wg.Go(func() {
			stream, err := r.admin.WatchAgent(ctx, &agentstatsv1.WatchAgentRequest{Agent: name})
			var event *agentstatsv1.WatchAgentResponse
			for err == nil {
				if event, err = stream.Recv(); err == nil {
					if writeErr := write(r, event); writeErr != nil {
						cancel(writeErr)
					}
				}
			}
			if ctx.Err() == nil && !errors.Is(err, io.EOF) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	var reached []*replica
	var refusal error
	for i, r := range a.reached {
		switch err := errs[i]; {
		case err == nil:
			reached = append(reached, r)
		case isRefusal(err) || status.Code(err) == codes.NotFound:
			refusal = a.explain(r, err)
		default:
			r.err = a.explain(r, err)
			a.away = append(a.away, r)
		}
	}
	a.reached = reached
	if len(reached) > 0 {
		return nil
	}
	if refusal != nil {
		return codedError{exitFault, refusal}
	}
	return codedError{exitNotAsked, a.awayError()}
}

// watchWriter writes events. Its methods may be called concurrently.
type watchWriter struct {
	json bool

	mu sync.Mutex
	w  io.Writer // guarded by mu
}

// eventDocument is a line of watch --json.
type eventDocument struct {
	Address string          `json:"address"`
	Replica string          `json:"replica"`
	Event   json.RawMessage `json:"event"`
}

func (w *watchWriter) write(r *replica, event *agentstatsv1.WatchAgentResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.json {
		text, err := inJSON.Marshal(event)
		if err != nil {
			return fmt.Errorf("print JSON: %w", err)
		}
		return json.NewEncoder(w.w).Encode(eventDocument{r.dial, r.self.GetName(), text})
	}
	line := ""
	if n := event.GetMissed(); n > 0 {
		line = fmt.Sprintf("(%s events were missed, as this is slower than the agent)\n", number(n))
	}
	line += fmt.Sprintf("%s  %s  %-10s  %s  %s\n", event.GetAt().AsTime().Local().Format("15:04:05.000"), shown(r.label()), shown(event.GetKind()),
		number(event.GetSequence()), shown(event.GetText()))
	return print(w.w, line)
}
