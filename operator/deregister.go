package operator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coder/serpent"
	"github.com/google/uuid"
	"golang.org/x/term"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// maxDeregistered bounds what one command removes: more is a mistake, or coderd's to do.
const maxDeregistered = 1000

func deregisterCommand() *serpent.Command {
	c := &connection{changes: true}
	var dryRun, yes bool
	return &serpent.Command{
		Use:   "deregister NAME...",
		Short: "Have the service forget agents that are gone, and coderd did not remove.",
		Long: agentNames + " It says what goes: the registration, the session, the series and the metadata of each. Nothing of it comes back, " +
			"unless coderd registers the agent again, as it does at its next sync with one that it has. It needs coderd's token, and asks before it does it.\n\n" +
			"  agentstatsd deregister ada/dev.main --dry-run" + exitCodes,
		Options: c.options(
			serpent.Option{Flag: "dry-run", Default: "false", Description: "Say what would go, and change nothing.", Value: serpent.BoolOf(&dryRun)},
			serpent.Option{Flag: "yes", Default: "false", Description: "Do not ask.", Value: serpent.BoolOf(&yes)},
		),
		Middleware: func(next serpent.HandlerFunc) serpent.HandlerFunc {
			return func(inv *serpent.Invocation) error {
				switch n := len(inv.Args); {
				case n == 0:
					return errors.New("deregister takes agents, got none: see --help")
				case n > maxDeregistered:
					return fmt.Errorf("deregister takes at most %d agents, got %d", maxDeregistered, n)
				}
				return next(inv)
			}
		},
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			agents, err := a.describeEach(inv.Context(), inv.Args)
			if err != nil {
				return err
			}
			if !c.json {
				if err := print(inv.Stdout, goesText(agents, time.Now())); err != nil {
					return err
				}
			}
			if !dryRun && !yes {
				if err := confirm(inv, len(agents)); err != nil {
					return err
				}
			}
			gone := int64(0)
			if !dryRun {
				if gone, err = a.deregister(inv.Context(), agents); err != nil {
					return err
				}
			}
			switch {
			case c.json:
				return a.printDeregistered(inv.Stdout, agents, gone)
			case dryRun:
				return print(inv.Stdout, "nothing was changed: --dry-run\n")
			}
			return print(inv.Stdout, fmt.Sprintf("%d of %d agents were deregistered\n", gone, len(agents)))
		},
	}
}

// describeEach returns the agents that names mean, each once.
func (a *asked) describeEach(ctx context.Context, names []string) ([]*agentstatsv1.DescribeAgentResponse, error) {
	var all []*agentstatsv1.DescribeAgentResponse
	for _, name := range names {
		agent, err := a.describe(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", shown(name), err)
		}
		if !slices.ContainsFunc(all, func(o *agentstatsv1.DescribeAgentResponse) bool {
			return o.GetSummary().GetId() == agent.GetSummary().GetId()
		}) {
			all = append(all, agent)
		}
	}
	return all, nil
}

// goesText says what goes with agents.
func goesText(agents []*agentstatsv1.DescribeAgentResponse, now time.Time) string {
	t := newTable("AGENT", "ID", "TEMPLATE", "STATUS", "SESSION", "SERIES", "METADATA", "SEEN")
	for _, a := range agents {
		s := a.GetSummary()
		session := "none"
		if s.GetReplica() != "" || a.GetSession() != nil {
			session = strings.TrimSpace("open " + s.GetReplica())
		}
		keys := fmt.Sprintf("%d keys", len(a.GetMetadata()))
		if a.GetMetadataProblem() != "" {
			keys = "not known"
		}
		t.row(agentName(s.GetOwner(), s.GetWorkspace(), s.GetName()), s.GetId(), s.GetTemplate(), s.GetStatus(), session, optionalNumber(s.Series),
			keys, ago(now, s.GetLastSeenAt()))
	}
	return t.String()
}

// confirm asks on a terminal whether to go on.
func confirm(inv *serpent.Invocation, agents int) error {
	in, ok := inv.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return errors.New("nobody can be asked here: give --yes, or --dry-run to change nothing")
	}
	return askYes(in, inv.Stderr, fmt.Sprintf("Deregister %d agents? Type yes: ", agents))
}

// askYes returns nil if the answer is yes.
func askYes(in io.Reader, out io.Writer, question string) error {
	if err := print(out, question); err != nil {
		return err
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was changed: the answer was not yes")
	}
	return nil
}

// deregister has the first replica that answers forget agents: it tells the others.
func (a *asked) deregister(ctx context.Context, agents []*agentstatsv1.DescribeAgentResponse) (gone int64, err error) {
	req := &agentstatsv1.DeregisterAgentsRequest{}
	for _, agent := range agents {
		id, err := uuid.Parse(agent.GetSummary().GetId())
		if err != nil {
			return 0, coded(exitFault, "the service has answered an agent without an id: it is of another version")
		}
		req.AgentIds = append(req.AgentIds, id[:])
	}
	r := a.reached[0]
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := agentstatsv1.NewCoderdServiceClient(r.conn).DeregisterAgents(ctx, req)
	if err != nil {
		return 0, coded(exitFault, "%s: %w", r.dial, a.explain(r, err))
	}
	return resp.GetDeregistered(), nil
}

func (a *asked) printDeregistered(w io.Writer, agents []*agentstatsv1.DescribeAgentResponse, gone int64) error {
	d, err := answersOf(a, agents)
	if err != nil {
		return err
	}
	return printJSON(w, struct {
		document
		Deregistered int64 `json:"deregistered"`
	}{d, gone})
}
