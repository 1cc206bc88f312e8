package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/coder/serpent"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func doctorSeriesCommand() *serpent.Command {
	c := &connection{}
	return &serpent.Command{
		Use:   "series SELECTOR",
		Short: "Find out why a series of an agent is missing, hidden, stale or doubled.",
		Long: "The selector is one of Prometheus. All replicas look for the series, from registration to scrape. The last line " +
			"says what it comes to.\n\n" +
			"  agentstatsd doctor series 'app_requests_total{username=\"ada\",workspace_name=\"dev\"}'\n\n" +
			"Exit codes: 0 it is served as expected, 1 a cause was found, 2 the replicas that might serve it could not be asked.",
		Options:    c.options(),
		Middleware: oneArgument("one selector"),
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			answers, err := askAll(inv.Context(), a, func(ctx context.Context, r *replica) (*agentstatsv1.ExplainSeriesResponse, error) {
				return r.admin.ExplainSeries(ctx, &agentstatsv1.ExplainSeriesRequest{Selector: inv.Args[0]})
			})
			if err != nil {
				return err
			}
			d := a.diagnose(answers)
			if c.json {
				err = a.printDiagnosis(inv.Stdout, answers, d)
			} else {
				err = print(inv.Stdout, explanationsText(answers)+shown(d.conclusion)+"\n")
			}
			if err != nil {
				return err
			}
			if d.code != 0 {
				return coded(d.code, "%s", outcomes[d.code])
			}
			return nil
		},
	}
}

// outcomes say what the exit codes of doctor series mean. The conclusion was printed.
var outcomes = map[int]string{exitFault: "it is not as expected", exitNotAsked: "not all replicas that might serve it were asked"}

// causeElsewhere is the cause of a finding that says that another replica serves it.
const causeElsewhere = "other_replica"

// causes are those of findings, the most telling first.
var causes = []string{
	"refused", "over_limit", "type_conflict", "hidden_by_pushed", "hidden_by_newer", "superseded", "not_registered", "grouped", "expired",
	"doubled", "stale", "no_report", "other_labels", "unknown_family", causeElsewhere,
}

// diagnosis is what all replicas' explanations come to.
type diagnosis struct {
	conclusion string
	code       int
	served     float64
}

// diagnose returns what explanations come to. A series is served by one replica: that the
// others do not is as it should be.
func (a *asked) diagnose(answers []answer[*agentstatsv1.ExplainSeriesResponse]) diagnosis {
	var d diagnosis
	var servers []string
	by := make(map[string][]string) // replicas by the series that they serve
	for _, r := range answers {
		if d.served += r.value.GetServedCount(); r.value.GetServedCount() > 0 {
			servers = append(servers, r.label())
		}
		for _, series := range r.value.GetServed() {
			by[series] = append(by[series], r.label())
		}
	}
	for _, series := range slices.Sorted(maps.Keys(by)) {
		if replicas := by[series]; len(replicas) > 1 && isOfOneAgent(series) {
			d.code, d.conclusion = exitFault, fmt.Sprintf("%s is doubled: %s serve it.", series, strings.Join(replicas, " and "))
			return d
		}
	}
	cause, away := mainCause(answers, d.served > 0), len(a.away)+len(a.unasked)
	isElsewhere := cause == nil || cause.GetCause() == causeElsewhere
	switch {
	case d.served > 0 && isElsewhere:
		d.conclusion = fmt.Sprintf("%s, by %s.", servedText(d.served), strings.Join(servers, " and "))
	case d.served > 0:
		d.code, d.conclusion = exitFault, servedText(d.served)+", but: "+cause.GetText()
	case away > 0 && (isElsewhere || isOfReplica(cause)):
		d.code = exitNotAsked
		d.conclusion = fmt.Sprintf("No replica that was asked serves it, and %d could not be asked: give the --address of each.", away)
	case cause != nil:
		d.code, d.conclusion = exitFault, "No series that matches is served: "+cause.GetText()
	default:
		d.code, d.conclusion = exitFault, answers[0].value.GetConclusion()
	}
	return d
}

func servedText(n float64) string {
	if n == 1 {
		return "1 series matches and is served"
	}
	return number(n) + " series match and are served"
}

// isOfOneAgent reports whether a series has all labels that tell agents apart. Others may
// be served by several replicas, each for its own agents or for itself.
func isOfOneAgent(series string) bool {
	return strings.Contains(series, `agent_name="`) && strings.Contains(series, `workspace_name="`) && strings.Contains(series, `username="`)
}

// isOfReplica reports whether a finding says only what the replica itself does not know.
func isOfReplica(f *agentstatsv1.Finding) bool {
	return f.GetAgentId() == "" && slices.Contains([]string{"no_report", "other_labels", "unknown_family"}, f.GetCause())
}

// mainCause returns the most telling finding of all; nil: there is none. What one replica
// does not know is no cause if others serve it. A cause that is not known here comes first.
func mainCause(answers []answer[*agentstatsv1.ExplainSeriesResponse], isServed bool) (first *agentstatsv1.Finding) {
	for _, r := range answers {
		for _, f := range r.value.GetFindings() {
			if isServed && isOfReplica(f) {
				continue
			}
			if first == nil || slices.Index(causes, f.GetCause()) < slices.Index(causes, first.GetCause()) {
				first = f
			}
		}
	}
	return first
}

// explanationsText returns what replicas have found, for people.
func explanationsText(answers []answer[*agentstatsv1.ExplainSeriesResponse]) string {
	var b strings.Builder
	for _, r := range answers {
		fmt.Fprintf(&b, "%s: %s\n", shown(r.label()), servedText(r.value.GetServedCount()))
		for _, series := range r.value.GetServed() {
			fmt.Fprintf(&b, "  %s\n", shown(series))
		}
		if more := r.value.GetServedCount() - float64(len(r.value.GetServed())); more > 0 {
			fmt.Fprintf(&b, "  and %s more\n", number(more))
		}
		for _, found := range r.value.GetFindings() {
			fmt.Fprintf(&b, "  %s: %s\n", shown(found.GetCause()), shown(found.GetText()))
			for _, more := range []string{found.GetRemedy(), found.GetUrl()} {
				if more != "" {
					fmt.Fprintf(&b, "    %s\n", shown(more))
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// explanationDocument is what doctor series --json prints.
type explanationDocument struct {
	Asked []askedDocument `json:"asked"`
	// Answers are in the order of those of asked that have answered.
	Answers []json.RawMessage `json:"answers"`
	// Served is how many series match and are served, by all replicas.
	Served     float64 `json:"served"`
	Conclusion string  `json:"conclusion"`
	// ExitCode is the one that the command ends with.
	ExitCode int `json:"exit_code"`
}

func (a *asked) printDiagnosis(w io.Writer, answers []answer[*agentstatsv1.ExplainSeriesResponse], d diagnosis) error {
	messages := make([]*agentstatsv1.ExplainSeriesResponse, len(answers))
	for i, r := range answers {
		messages[i] = r.value
	}
	doc, err := answersOf(a, messages)
	if err != nil {
		return err
	}
	return printJSON(w, explanationDocument{doc.Asked, doc.Answers, d.served, d.conclusion, d.code})
}
