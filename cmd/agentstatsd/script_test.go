package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"agentstatsd": main})
}

// TestScripts runs the program as a shell would: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	caches, err := os.UserCacheDir()
	require.NoError(t, err)
	checkout, err := filepath.Abs(root)
	require.NoError(t, err)
	authority := newAuthority(t)
	cert, key := authority.issue(t, 1, "localhost")
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			for _, name := range []string{"GRPC", "HTTP", "BRIDGE", "BRIDGE_HTTP", "CODERD"} {
				env.Setenv(name, freeport.Addr())
			}
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("GOCACHE", filepath.Join(caches, "go-build"))
			env.Setenv("ROOT", checkout)
			for name, text := range map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": authority.pem} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), text, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await":    await,
			"doc":      doc(t),
			"runbooks": runbooks(t),
			"fetch":    fetch,
			"post":     post,
		},
	})
}

// await URL TEXT waits until the body of URL contains TEXT.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await URL TEXT")
	}
	deadline := time.Now().Add(30 * time.Second)
	var last string
	for {
		body, err := get(args[0])
		if err == nil && strings.Contains(body, args[1]) {
			return
		}
		last = fmt.Sprintf("%v %s", err, body)
		if time.Now().After(deadline) {
			ts.Fatalf("%s has no %q after 30 s: %s", args[0], args[1], last)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// fetch URL FILE writes the body of URL to FILE.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fetch URL FILE")
	}
	body, err := get(args[0])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(body), 0o600))
}

// post URL posts nothing to URL, whatever the answer is.
func post(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: post URL")
	}
	resp, err := http.Post(args[0], "", nil)
	ts.Check(err)
	ts.Check(resp.Body.Close())
}

func get(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}
