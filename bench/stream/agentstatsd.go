package stream

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Agentstatsd is a running service, the very binary.
type Agentstatsd struct {
	*process.Process
	// GRPC and HTTP are its addresses, Token is coderd's, TokenFile holds it.
	GRPC, HTTP, Token, TokenFile string
}

// readyTimeout bounds the wait for a service that starts.
const readyTimeout = 30 * time.Second

// StartAgentstatsd starts the binary with its defaults, beside addresses and a
// data directory within dir, and waits until it is ready. More options may be
// given.
func StartAgentstatsd(ctx context.Context, binary, dir string, options ...string) (*Agentstatsd, error) {
	dataDir, err := os.MkdirTemp(dir, "data-")
	if err != nil {
		return nil, fmt.Errorf("make a data directory: %w", err)
	}
	addrs, err := FreeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	a := &Agentstatsd{GRPC: addrs[0], HTTP: addrs[1], Token: rand.Text(), TokenFile: filepath.Join(dataDir, "coderd-token")}
	// With a database that others may use, too, it makes no token.
	if err := os.WriteFile(a.TokenFile, []byte(a.Token+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write coderd's token: %w", err)
	}
	args := append([]string{
		"serve", "--data-dir", dataDir, "--grpc-address", a.GRPC, "--prometheus-address", a.HTTP,
	}, options...)
	if a.Process, err = process.Start(ctx, binary, args...); err != nil {
		return nil, err
	}
	if err := AwaitHTTP(ctx, a.Process, "http://"+a.HTTP+"/-/ready"); err != nil {
		a.Kill()
		return nil, fmt.Errorf("start agentstatsd: %w\n%s", err, a.Log())
	}
	return a, nil
}

// AwaitHTTP waits until a process answers a GET with status 200.
func AwaitHTTP(ctx context.Context, p *process.Process, url string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.Exited():
			return fmt.Errorf("it ended before it was ready:\n%s", p.Log())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", url, ctx.Err())
		}
	}
}

// FreeAddresses returns addresses on loopback that nobody listens on now.
func FreeAddresses(ctx context.Context, n int) ([]string, error) {
	var lc net.ListenConfig
	addrs := make([]string, n)
	for i := range addrs {
		lis, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free address: %w", err)
		}
		defer func() { _ = lis.Close() }()
		addrs[i] = lis.Addr().String()
	}
	return addrs, nil
}

// Register makes agents 0 to n-1 known to a service, as coderd does. The
// certificate, if any, is that of the service.
func Register(ctx context.Context, addr, token, ca string, n int) error {
	opts := client.DialOptions{Token: token, Plaintext: ca == ""}
	if ca != "" {
		var err error
		if opts.TLS, err = (client.TLSFiles{CA: ca}).Config(); err != nil {
			return err
		}
	}
	conn, err := client.Dial(addr, opts)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	if err != nil {
		return err
	}
	agents := make([]*agentstatsv1.AgentRegistration, n)
	for i := range agents {
		agents[i] = load.Registration(i)
	}
	if _, err := coderd.Register(ctx, agents, nil); err != nil {
		return fmt.Errorf("register %d agents: %w", n, err)
	}
	return nil
}
