package simulation

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"github.com/coder/agentstatsd/client"
	"github.com/coder/agentstatsd/internal/addresses"
	"github.com/coder/agentstatsd/secrets"
	"github.com/coder/agentstatsd/simulate"
)

// coderAgents are agents that speak Coder's own protocol.
type coderAgents struct {
	urls       []string
	tokensFile string
}

// options returns where they connect, and who they are. Its errors show neither passwords nor
// tokens.
func (c coderAgents) options(caFile string, plaintext bool, log *slog.Logger) (o simulate.CoderOptions, err error) {
	if len(c.urls) == 0 || c.tokensFile == "" {
		return o, errors.New("--coder-url and --agent-tokens-file need each other")
	}
	for _, text := range c.urls {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return o, errors.New("--coder-url: want URLs such as http://localhost:2114, without user, query and fragment")
		}
		if loopback, err := addresses.IsLoopback(net.JoinHostPort(u.Hostname(), "80")); u.Scheme == "http" && !plaintext && (err != nil || !loopback) {
			return o, fmt.Errorf("--coder-url %s is beyond loopback without TLS: give --plaintext, if tokens may cross that network in the clear", text)
		}
		o.URLs = append(o.URLs, u)
	}
	text, info, err := secrets.ReadFile(c.tokensFile)
	if err != nil {
		return o, fmt.Errorf("--agent-tokens-file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		log.Warn("others can read the tokens of agents", "file", c.tokensFile, "mode", mode.String())
	}
	if o.Tokens = strings.Fields(string(text)); len(o.Tokens) == 0 {
		return o, errors.New("--agent-tokens-file: want a token in each line, got none")
	}
	if caFile != "" {
		o.TLS, err = client.TLSFiles{CA: caFile}.Config()
	}
	return o, err
}
