package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// DialOptions say how to reach the service and with which credentials.
type DialOptions struct {
	// TLS of the connection; nil: that of TLSFiles.
	TLS *tls.Config
	// TLSFiles are read anew for each connection, so that they can be changed. Those
	// that cannot be used then change nothing. Without any, and unless Plaintext, the
	// system's roots are taken. At most one of TLS and TLSFiles is set.
	TLSFiles TLSFiles
	// Plaintext sends everything, the token too, without TLS: for loopback and
	// for networks that encrypt by themselves.
	Plaintext bool
	// Token that each call carries; empty: none.
	Token string
	// TokenFile is read anew for each call, so that the token can be changed;
	// empty: none. At most one of Token and TokenFile is set.
	TokenFile string
}

// shuffled spreads clients over the replicas if the name has an address for each
// replica. Resolvers give all clients the addresses in one order, of which gRPC
// takes the first.
const shuffled = `{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}`

// Dial makes a connection to target, like "stats.example.com:2113". It connects
// when it is first used. If a name has several addresses, it takes one at random,
// and another one if that cannot be reached. extra options come last and win.
//
// It pings a silent server each minute while a stream is open. Whoever makes a
// connection otherwise must not ping more often than each 30 s: the service ends
// connections that do.
func Dial(target string, opts DialOptions, extra ...grpc.DialOption) (*grpc.ClientConn, error) {
	hasFiles := opts.TLSFiles != TLSFiles{}
	if opts.Plaintext && (opts.TLS != nil || hasFiles) {
		return nil, fmt.Errorf("dial %s: both plaintext and TLS are set", target)
	}
	if opts.TLS != nil && hasFiles {
		return nil, fmt.Errorf("dial %s: both TLS and files of TLS are set", target)
	}
	if opts.Token != "" && opts.TokenFile != "" {
		return nil, fmt.Errorf("dial %s: both a token and a token file are set", target)
	}
	transport := insecure.NewCredentials()
	switch {
	case opts.Plaintext:
	case opts.TLS != nil:
		transport = credentials.NewTLS(opts.TLS)
	default:
		files, err := newFileCredentials(opts.TLSFiles)
		if err != nil {
			return nil, fmt.Errorf("dial %s: %w", target, err)
		}
		transport = files
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(shuffled),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// An Agent waits between its attempts by itself. The connection's own
		// wait bounds only how late it notices that the service is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
	}
	if opts.Token != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(Token(opts.Token, opts.Plaintext)))
	}
	if opts.TokenFile != "" {
		dial = append(dial, grpc.WithPerRPCCredentials(TokenFile(opts.TokenFile, opts.Plaintext)))
	}
	conn, err := grpc.NewClient(target, append(dial, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", target, err)
	}
	return conn, nil
}

// Token makes credentials of a bearer token. Unless plaintext is allowed, a call
// without TLS fails rather than show the token.
func Token(token string, plaintext bool) credentials.PerRPCCredentials {
	return bearer{token: func() (string, error) { return token, nil }, plaintext: plaintext}
}

// TokenFile makes credentials of the bearer token in a file, without the white
// space around it. Of lines "name: token", as the service's own file may have, it is
// the first one's. The file is read for each call.
func TokenFile(path string, plaintext bool) credentials.PerRPCCredentials {
	return bearer{
		token: func() (string, error) {
			text, err := os.ReadFile(path)
			if err != nil {
				return "", fmt.Errorf("read token: %w", err)
			}
			token := firstToken(string(text))
			if token == "" {
				return "", fmt.Errorf("read token: %s is empty", path)
			}
			if i := unprintable(token); i >= 0 {
				return "", fmt.Errorf("read token: %s has a character that a header cannot have, at byte %d: want one line of printable ASCII", path, i+1)
			}
			return token, nil
		},
		plaintext: plaintext,
	}
}

// namedToken matches a line of a file with several tokens, and what may stand before it.
var namedToken = regexp.MustCompile(`^(?:[ \t]*(?:#[^\n]*)?\r?\n)*[ \t]*[a-z0-9][a-z0-9._-]{0,31}:[ \t]+(\S[^\r\n]*)`)

// firstToken returns the token in text, the content of a file.
func firstToken(text string) string {
	if match := namedToken.FindStringSubmatch(text); match != nil {
		text = match[1]
	}
	return strings.TrimSpace(text)
}

// unprintable returns the index of the first character that a token cannot have; below
// 0: there is none.
func unprintable(token string) int {
	return strings.IndexFunc(token, func(r rune) bool { return r < ' ' || r > '~' })
}

type bearer struct {
	token     func() (string, error)
	plaintext bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		// It may be there soon: not Unauthenticated, what gRPC would make of it.
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (b bearer) RequireTransportSecurity() bool {
	return !b.plaintext
}
