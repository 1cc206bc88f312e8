package operator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coder/serpent"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func doctorCommand() *serpent.Command {
	c := &connection{}
	command := &serpent.Command{
		Use:   "doctor",
		Short: "Check a deployment: each replica, and what replicas have to have alike.",
		Long: "Each line is a check: ok, warning or WRONG, with what to do. With a command behind it, it looks for one thing.\n\n" +
			"  agentstatsd doctor --address stats.example.com\n" +
			"  agentstatsd doctor series 'app_requests_total{workspace_name=\"dev\"}'\n\n" +
			"Exit codes: 0 nothing is wrong, 1 something is, 2 no replica could be asked.",
		Options:    c.options(),
		Middleware: optiontable.NoArguments,
		Handler: func(inv *serpent.Invocation) error {
			a, err := c.ask(inv)
			if err != nil {
				return err
			}
			defer a.close()
			f := a.examine(inv.Context(), time.Now())
			if c.json {
				err = printJSON(inv.Stdout, doctorDocument{a.documents(), f.all})
			} else {
				err = print(inv.Stdout, f.text())
			}
			if err != nil {
				return err
			}
			if n := f.count(resultWrong); n > 0 {
				return coded(exitFault, "%d of %d checks found something wrong", n, len(f.all))
			}
			return nil
		},
	}
	command.AddSubcommands(doctorSeriesCommand())
	return command
}

// Results of a check.
const (
	resultOK      = "ok"
	resultWarning = "warning"
	resultWrong   = "wrong"
)

// doctorDocument is what doctor --json prints.
type doctorDocument struct {
	Asked  []askedDocument `json:"asked"`
	Checks []check         `json:"checks"`
}

// check is what was found of one thing.
type check struct {
	Name string `json:"name"`
	// Replica is the name or the address of the one that it is of; empty: of all.
	Replica string `json:"replica"`
	Result  string `json:"result"`
	Text    string `json:"text"`
	// Remedy is what to do; empty if nothing has to be done.
	Remedy string `json:"remedy"`
}

// findings are the checks so far.
type findings struct{ all []check }

func (f *findings) add(name, replica, result, remedy, format string, args ...any) {
	f.all = append(f.all, check{name, replica, result, fmt.Sprintf(format, args...), remedy})
}

func (f *findings) count(result string) (n int) {
	for _, c := range f.all {
		if c.Result == result {
			n++
		}
	}
	return n
}

// text returns the checks for people, a line each.
func (f *findings) text() string {
	var b strings.Builder
	for _, c := range f.all {
		result := c.Result
		if result == resultWrong {
			result = "WRONG" // as check of the service's options has it
		}
		where := ""
		if c.Replica != "" {
			where = " of " + c.Replica
		}
		remedy := ""
		if c.Remedy != "" {
			remedy = ": " + c.Remedy
		}
		fmt.Fprintf(&b, "%-7s  %s%s: %s%s\n", result, c.Name, shown(where), shown(c.Text), shown(remedy))
	}
	return b.String()
}

// examined is what a replica that was reached has answered. What is nil was not answered.
type examined struct {
	*replica
	config *agentstatsv1.GetConfigResponse
	pushes *agentstatsv1.ListPushesResponse
	tls    *credentials.TLSInfo
}

// examine makes all checks.
func (a *asked) examine(ctx context.Context, now time.Time) *findings {
	f := &findings{}
	for _, r := range a.away {
		f.add("reached", r.dial, resultWrong, "", "%s", r.err)
	}
	answers, err := askAll(ctx, a, func(ctx context.Context, r *replica) (*examined, error) {
		// Answers that an older version does not have are left out.
		e := &examined{replica: r}
		var p peer.Peer
		e.config, _ = r.admin.GetConfig(ctx, &agentstatsv1.GetConfigRequest{}, grpc.Peer(&p))
		e.pushes, _ = r.admin.ListPushes(ctx, &agentstatsv1.ListPushesRequest{})
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			e.tls = &info
		}
		return e, ctx.Err()
	})
	if err != nil {
		f.add("answers", "", resultWrong, "", "%s", err)
	}
	var all []*examined
	for _, answer := range answers {
		e := answer.value
		all = append(all, e)
		f.add("reached", e.label(), resultOK, "", "%s answers, and takes the token of %s", e.dial, a.tokenFile)
		f.checkTLS(e, now)
		if e.self == nil {
			f.add("status", e.label(), resultWarning, "upgrade it", "it is of an older version, which does not say how it is")
			continue
		}
		f.checkReplica(e.label(), e.self, now)
	}
	f.checkTogether(a, all)
	return f
}

// certificateSoon is how long before its end a certificate is warned about.
const certificateSoon = 14 * 24 * time.Hour

// checkTLS checks the connection itself.
func (f *findings) checkTLS(e *examined, now time.Time) {
	switch {
	case e.tls != nil && len(e.tls.State.PeerCertificates) > 0:
		leaf := e.tls.State.PeerCertificates[0]
		left := leaf.NotAfter.Sub(now)
		if left < certificateSoon {
			f.add("certificate", e.label(), resultWarning, "replace the files of --tls-cert-file and --tls-key-file: no restart is needed", "ends in %s", span(left))
			return
		}
		f.add("certificate", e.label(), resultOK, "", "ends in %s", span(left))
	case !e.loopback:
		f.add("certificate", e.label(), resultWarning, "give the service --tls-cert-file and --tls-key-file, unless that network encrypts by itself",
			"the token and all answers cross the network in the clear")
	}
}
