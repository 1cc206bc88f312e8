package grpcserver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Token is a credential that is no agent's.
type Token struct {
	// Name of it for metrics and errors, one of its own among those of its role.
	Name string
	// Hash is its SHA-256.
	Hash [sha256.Size]byte
}

// NewToken returns the token with that text.
func NewToken(name, text string) Token { return Token{name, sha256.Sum256([]byte(text))} }

// Tokens are the credentials that are no agent's, by whose they are.
type Tokens struct {
	// Coderd is every holder of one of these.
	Coderd []Token
	// Push are of those who may only push.
	Push []Token
	// Operator are of those who may only read.
	Operator []Token
}

// of returns those of a role.
func (t *Tokens) of(role Role) []Token {
	switch role {
	case RoleCoderd:
		return t.Coderd
	case rolePusher:
		return t.Push
	case roleOperator:
		return t.Operator
	}
	return nil
}

// tokenRoles are the roles that have tokens here.
var tokenRoles = []Role{RoleCoderd, rolePusher, roleOperator}

// Validate returns why these cannot be the tokens of a server.
func (t *Tokens) Validate() error {
	var all []Token
	for _, role := range tokenRoles {
		for i, token := range t.of(role) {
			switch {
			case token.Hash == [sha256.Size]byte{}:
				return fmt.Errorf("tokens: %q of %s: want a hash, got none", token.Name, role)
			case slices.ContainsFunc(t.of(role)[:i], func(o Token) bool { return o.Name == token.Name }):
				return fmt.Errorf("tokens: want each name of %s once, got %q again", role, token.Name)
			case slices.ContainsFunc(all, func(o Token) bool { return o.Hash == token.Hash }):
				return fmt.Errorf("tokens: want one of its own for %q of %s, got that of another", token.Name, role)
			}
			all = append(all, token)
		}
	}
	return nil
}

// find returns the token with a text, and its role; 0: there is none. It takes the same
// time for all.
func (t *Tokens) find(text string) (found Token, role Role) {
	if text == "" {
		return Token{}, 0
	}
	got := sha256.Sum256([]byte(text))
	for _, r := range tokenRoles {
		for _, token := range t.of(r) {
			if subtle.ConstantTimeCompare(got[:], token.Hash[:]) == 1 {
				found, role = token, r
			}
		}
	}
	return found, role
}

// tokens are those in force, and the streams that they opened.
type tokens struct {
	now atomic.Pointer[Tokens]

	mu sync.Mutex
	// Guarded by mu, as are changes of now.
	open map[*tokenStream]struct{}
}

// tokenStream is an open stream of the holder of a token.
type tokenStream struct {
	hash  [sha256.Size]byte
	role  Role
	ender StreamEnder
}

// begin notes a stream that was let in by a token. The caller calls end at its end. It
// returns false if the token was removed meanwhile.
func (t *tokens) begin(ctx context.Context, token Token) (end func(), ok bool) {
	role := roleOfToken(CallerFrom(ctx))
	ender, err := EnderOf(ctx)
	if err != nil {
		return nil, false
	}
	s := &tokenStream{token.Hash, role, ender}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.now.Load().has(s) {
		return nil, false
	}
	if t.open == nil {
		t.open = make(map[*tokenStream]struct{})
	}
	t.open[s] = struct{}{}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.open, s)
	}, true
}

// has reports whether the token of a stream is one of the role that it was opened with.
func (t *Tokens) has(s *tokenStream) bool {
	return slices.ContainsFunc(t.of(s.role), func(o Token) bool { return o.Hash == s.hash })
}

// roleOfToken returns the role of a caller who has a token that is no agent's.
func roleOfToken(who Caller) Role {
	switch {
	case who.IsPusher:
		return rolePusher
	case who.IsOperator:
		return roleOperator
	}
	return RoleCoderd
}

// replace makes next those in force, and returns the streams of tokens that are none of
// their role any more.
func (t *tokens) replace(next *Tokens) (removed []*tokenStream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now.Store(next)
	for s := range t.open {
		if !next.has(s) {
			removed = append(removed, s)
		}
	}
	return removed
}

// errTokenRemoved ends streams of a token that was removed.
var errTokenRemoved = status.New(codes.Unauthenticated, "unknown token: it was removed")

// SetTokens makes next the credentials that are no agent's. Streams that were opened with
// others are ended. After an error nothing has changed.
func (s *Server) SetTokens(next Tokens) error {
	if err := next.Validate(); err != nil {
		return err
	}
	s.metrics.countTokens(&next)
	removed := s.auth.tokens.replace(&next)
	if len(removed) > 0 {
		s.log.Info("tokens were removed: the streams that they opened end", "streams", len(removed))
	}
	for _, stream := range removed {
		_ = stream.ender.WriteStatus(errTokenRemoved)
	}
	return nil
}
