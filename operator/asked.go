package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/coder/serpent"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coder/agentstatsd/optiontable"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// asked are the replicas of a service, each once.
type asked struct {
	*connection
	// reached have answered; away have not, and say why.
	reached, away []*replica
	// unasked live, as the others say, and none of the addresses is theirs.
	unasked []*agentstatsv1.ReplicaStatus
}

// ask dials all replicas and asks each who it is. The caller closes them. An error is
// returned if none was reached.
func (c *connection) ask(inv *serpent.Invocation) (*asked, error) {
	if err := optiontable.FlagsOverEnvironment(inv); err != nil {
		return nil, err
	}
	replicas, err := c.dial(inv.Context(), inv.Environ)
	if err != nil {
		return nil, err
	}
	each(inv.Context(), c, replicas, func(ctx context.Context, r *replica) {
		resp, err := r.admin.GetStatus(ctx, &agentstatsv1.GetStatusRequest{})
		switch {
		case status.Code(err) == codes.Unimplemented: // of an older version
		case err != nil:
			r.err = c.explain(r, err)
		case len(resp.GetReplicas()) > 0:
			r.self, r.others = resp.GetReplicas()[0], resp.GetReplicas()[1:]
		}
	})
	a := &asked{connection: c}
	for _, r := range replicas {
		switch {
		case r.err != nil:
			a.away = append(a.away, r)
		case slices.ContainsFunc(a.reached, func(o *replica) bool { return isSame(o.self, r.self) }):
			_ = r.conn.Close() // another address of the same one
		default:
			a.reached = append(a.reached, r)
		}
	}
	a.away = slices.DeleteFunc(a.away, a.isOtherFamily)
	if len(a.reached) == 0 {
		defer a.close()
		return nil, coded(exitNotAsked, "no replica could be asked: %w", a.awayError())
	}
	a.findUnasked()
	return a, nil
}

func (a *asked) close() {
	closeAll(a.reached)
	closeAll(a.away)
}

// isSame reports whether both are one process.
func isSame(a, b *agentstatsv1.ReplicaStatus) bool {
	switch {
	case a == nil || b == nil:
		return false
	case a.GetId() != "" || b.GetId() != "":
		return a.GetId() == b.GetId()
	}
	return a.GetStartedAt().IsValid() && a.GetStartedAt().AsTime().Equal(b.GetStartedAt().AsTime())
}

// isOtherFamily reports whether a replica that is away is one that was reached by another
// family of addresses: a name may have an IPv4 address and an IPv6 address of each replica.
// It is if nobody of its name is reached by its family.
func (a *asked) isOtherFamily(r *replica) bool {
	isOther := func(o *replica) bool { return o.target == r.target && o.isIPv6() != r.isIPv6() }
	isLike := func(o *replica) bool { return o.target == r.target && o.isIPv6() == r.isIPv6() }
	return slices.ContainsFunc(a.reached, isOther) && !slices.ContainsFunc(a.reached, isLike)
}

func (a address) isIPv6() bool { return strings.HasPrefix(a.dial, "[") }

// findUnasked finds who lives and was not asked.
func (a *asked) findUnasked() {
	for _, r := range a.reached {
		for _, o := range r.others {
			isHere := slices.ContainsFunc(a.reached, func(r *replica) bool { return isSame(r.self, o) })
			isKnown := slices.ContainsFunc(a.unasked, func(u *agentstatsv1.ReplicaStatus) bool { return isSame(u, o) })
			if o.GetAlive() && !isHere && !isKnown {
				a.unasked = append(a.unasked, o)
			}
		}
	}
}

// awayError says who was not reached, and why; nil: all were. Of those with one reason it
// says it once.
func (a *asked) awayError() error {
	var reasons []string
	by := make(map[string][]string)
	for _, r := range a.away {
		reason := r.err.Error()
		if by[reason] == nil {
			reasons = append(reasons, reason)
		}
		by[reason] = append(by[reason], r.dial)
	}
	if len(reasons) == 0 {
		return nil
	}
	for i, reason := range reasons {
		reasons[i] = strings.Join(by[reason], ", ") + ": " + reason
	}
	return errors.New(strings.Join(reasons, "; "))
}

// partial returns an error if not all have answered. With sums an answer is a sum over
// replicas: those count that live and were not asked, too.
func (a *asked) partial(sums bool) error {
	all := len(a.reached) + len(a.away)
	if err := a.awayError(); err != nil {
		return coded(exitPartial, "%d of %d replicas have not answered: %w", len(a.away), all, err)
	}
	if !sums || len(a.unasked) == 0 {
		return nil
	}
	names := make([]string, len(a.unasked))
	for i, u := range a.unasked {
		names[i] = shown(cmp.Or(u.GetName(), u.GetId()))
	}
	return coded(exitPartial, "%d of %d replicas were not asked, give the --address of each: %s", len(names), all+len(names), strings.Join(names, ", "))
}

// each calls f for all replicas at once, with the timeout, and waits for all.
func each(ctx context.Context, c *connection, replicas []*replica, f func(context.Context, *replica)) {
	var wg sync.WaitGroup
	for _, r := range replicas {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, c.timeout)
			defer cancel()
			f(ctx, r)
		})
	}
	wg.Wait()
}

// answer is what one replica has answered.
type answer[T any] struct {
	*replica
	value T
}

// askAll asks all that were reached, at once. Those that do not answer are away from then
// on; those that do not know what is asked for have no answer only. An error is returned
// if none answers.
func askAll[T any](ctx context.Context, a *asked, call func(ctx context.Context, r *replica) (T, error)) ([]answer[T], error) {
	values, errs := make([]T, len(a.reached)), make([]error, len(a.reached))
	index := make(map[*replica]int)
	for i, r := range a.reached {
		index[r] = i
	}
	each(ctx, a.connection, a.reached, func(ctx context.Context, r *replica) {
		values[index[r]], errs[index[r]] = call(ctx, r)
	})
	var answers []answer[T]
	var reached []*replica
	var refusal error
	for i, r := range a.reached {
		switch err := errs[i]; {
		case err == nil:
			reached, answers = append(reached, r), append(answers, answer[T]{r, values[i]})
		case status.Code(err) == codes.NotFound:
			reached, refusal = append(reached, r), a.explain(r, err)
		default:
			if r.err = a.explain(r, err); isRefusal(err) {
				refusal = r.err
			}
			a.away = append(a.away, r)
		}
	}
	a.reached = reached
	switch {
	case len(answers) > 0:
		return answers, nil
	case refusal != nil:
		return nil, codedError{exitFault, refusal}
	}
	return nil, codedError{exitNotAsked, a.awayError()}
}

// isRefusal reports whether a replica was asked and refused the request.
func isRefusal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.PermissionDenied:
		return true
	}
	return false
}

// explain returns the error of a call in words that say what to do. The service's own have
// names that users chose.
func (c *connection) explain(r *replica, err error) error {
	s := status.Convert(err)
	text := shown(s.Message())
	has := func(part string) bool { return strings.Contains(text, part) }
	switch code := s.Code(); {
	case code == codes.Unauthenticated:
		return fmt.Errorf("the token of %s is none of the service's: give --token-file", c.tokenFile)
	case code == codes.PermissionDenied:
		return fmt.Errorf("the token of %s does not suffice: %s", c.tokenFile, text)
	case code == codes.Unimplemented:
		return errors.New("the service is of a version that does not answer this")
	case code == codes.DeadlineExceeded:
		return fmt.Errorf("no answer within %s: look at the service, or give a longer --timeout", c.timeout)
	case code == codes.Canceled:
		return errors.New("stopped")
	case code != codes.Unavailable:
		return errors.New(text)
	case has("connection refused"):
		return errors.New("nobody listens there: start the service, or give its --grpc-address as --address")
	case has("first record does not look like a TLS handshake"):
		return errors.New("the service speaks no TLS there: dial it on loopback, or give --plaintext")
	case has("x509: certificate signed by unknown authority"):
		return errors.New("the certificate is not trusted: give --ca-file with its authority")
	case has("x509: certificate is valid for"), has("x509: certificate is not valid for any names"), has("doesn't contain any IP SANs"):
		return fmt.Errorf("the certificate is for another name than %s: give --server-name", cmp.Or(c.serverName, r.host))
	case has("error reading server preface"), has("connection reset by peer"):
		return errors.New("the connection was ended: give --grpc-address of the service, not --prometheus-address, and --tls or --ca-file where it has a certificate")
	}
	return errors.New(plain(text))
}

// plain returns the text of a gRPC error without what gRPC wraps around the cause.
func plain(text string) string {
	for _, before := range []string{"connection error: desc = ", "transport: ", "Error while dialing: "} {
		text = strings.TrimPrefix(strings.Trim(text, `"`), before)
	}
	return text
}
