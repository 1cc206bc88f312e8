// Package integration runs the real binary against a real Prometheus, and kills
// it. It is a module of its own, so that what tests need does not become a
// dependency of those who link the client.
package integration

import (
	"bytes"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
	"github.com/coder/agentstatsd/internal/postgrestest"
)

var soak = flag.Bool("soak", false, "run the long tests at full size")

// besides is how many parallel tests run at once: three leave time of two cores for others.
const besides = 3

// places has room for as many. A test that waits for something else has no place: the
// flag of go test would count it.
var places = make(chan struct{}, besides)

// beside lets a test run beside others, but for its full size. It waits for a place,
// which is free again when the test has cleaned up. Subtests have places of their own:
// their test says parallel only.
func beside(t *testing.T) {
	parallel(t)
	takePlace(t, places)
}

// parallel is that of t, but for the full size.
func parallel(t *testing.T) {
	if !*soak {
		t.Parallel()
	}
}

func takePlace(t *testing.T, places chan struct{}) {
	places <- struct{}{}
	t.Cleanup(func() { <-places })
}

// binary is the path of agentstatsd, built once for all tests.
var binary string

func TestMain(m *testing.M) {
	if name := os.Getenv(attackVariable); name != "" {
		os.Exit(beAttacker(name))
	}
	flag.Parse()
	// Places bound them, not cores.
	if err := flag.Set("test.parallel", "1000"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "agentstatsd-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "agentstatsd")
	build := exec.Command("go", "build", "-trimpath", "-o", binary, "./cmd/agentstatsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build agentstatsd: %v\n%s", err, out)
		os.Exit(1)
	}
	code := postgrestest.Main(m).Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// service is one agentstatsd process after another over one data directory and
// the same two addresses.
type service struct {
	program  string // that runs; newService: binary
	command  string // of it; newService: serve
	dataDir  string
	grpcAddr string
	httpAddr string
	args     []string
	// https, user and password are how its HTTP listener is reached.
	https          bool
	user, password string
	files          int // that the process may open; 0: as many as the tests
	// env is added to the environment; before are a program and arguments that run it.
	env, before []string

	cmd    *exec.Cmd
	exited chan error
	log    *lockedBuffer
}

// newService chooses addresses and a data directory; it starts nothing.
func newService(t *testing.T, args ...string) *service {
	s := &service{
		program:  binary,
		command:  "serve",
		dataDir:  t.TempDir(),
		grpcAddr: freeport.Addr(),
		httpAddr: freeport.Addr(),
		args:     args,
		log:      new(lockedBuffer),
	}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.kill()
		}
		if t.Failed() {
			t.Logf("log of the service:\n%s", s.log.tail(16<<10))
		}
	})
	return s
}

func (s *service) tokenFile() string { return filepath.Join(s.dataDir, "coderd-token") }

func (s *service) database() string { return filepath.Join(s.dataDir, "agentstatsd.db") }

// start starts the process and waits until it is ready.
func (s *service) start(t *testing.T) {
	t.Helper()
	args := append([]string{
		s.command, "--data-dir", s.dataDir,
		"--grpc-address", s.grpcAddr, "--prometheus-address", s.httpAddr,
	}, s.args...)
	s.cmd = exec.Command(s.program, args...)
	if s.files > 0 {
		s.cmd = exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, s.files), s.program}, args...)...)
	}
	if s.before != nil {
		s.cmd = exec.Command(s.before[0], slices.Concat(s.before[1:], s.cmd.Args)...)
	}
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stderr = s.log
	require.NoError(t, s.cmd.Start())
	exited := make(chan error, 1)
	s.exited = exited
	go func(cmd *exec.Cmd) { exited <- cmd.Wait() }(s.cmd)
	s.waitReady(t)
}

// startPatience is how long the service may take to start: each of some 30 migrations waits for
// a disk that builds and other tests may keep busy.
const startPatience = 3 * time.Minute

func (s *service) waitReady(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(startPatience)
	for {
		resp, err := s.get("/-/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-s.exited:
			s.cmd = nil
			t.Fatalf("the service ended before it was ready: %v\n%s", err, s.log.tail(4<<10))
		case <-time.After(20 * time.Millisecond):
		}
		require.True(t, time.Now().Before(deadline), "the service is not ready after %v", startPatience)
	}
}

// get asks the HTTP listener on a connection of its own.
func (s *service) get(path string) (*http.Response, error) {
	scheme := "http://"
	if s.https {
		scheme = "https://"
	}
	req, err := http.NewRequest(http.MethodGet, scheme+s.httpAddr+path, nil)
	if err != nil {
		return nil, err
	}
	if s.user != "" {
		req.SetBasicAuth(s.user, s.password)
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	return (&http.Client{Transport: transport}).Do(req)
}

// kill ends the process as a crash would.
func (s *service) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// stop ends the process as an operator would, and returns how long that took and
// how it ended.
func (s *service) stop(sig syscall.Signal) (time.Duration, error) {
	start := time.Now()
	_ = s.cmd.Process.Signal(sig)
	err := <-s.exited
	s.cmd = nil
	return time.Since(start), err
}

// scrape gets path with the given headers.
func (s *service) scrape(t *testing.T, path string, header ...string) (http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+s.httpAddr+path, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
	return resp.Header, body
}

// simulation is a running `agentstatsd simulate`.
type simulation struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr lockedBuffer
}

func startSimulation(t *testing.T, s *service, args ...string) *simulation {
	t.Helper()
	return runSimulation(t, append([]string{"--target", s.grpcAddr, "--coderd-token-file", s.tokenFile(), "--json"}, args...)...)
}

func runSimulation(t *testing.T, args ...string) *simulation {
	t.Helper()
	sim := new(simulation)
	sim.cmd = exec.Command(binary, append([]string{"simulate"}, args...)...)
	sim.cmd.Stdout = &sim.stdout
	sim.cmd.Stderr = &sim.stderr
	require.NoError(t, sim.cmd.Start())
	t.Cleanup(func() {
		if sim.cmd.ProcessState == nil {
			_ = sim.cmd.Process.Kill()
			_ = sim.cmd.Wait()
		}
	})
	return sim
}

// stop ends a simulation that was given no duration: it sends no more, and returns
// when the last acks are there. So no simulation ends within a fault, however long
// the service takes to recover from it.
func (sim *simulation) stop() error {
	if err := sim.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return sim.wait()
}

// wait returns when the simulation has ended.
func (sim *simulation) wait() error {
	if err := sim.cmd.Wait(); err != nil {
		return fmt.Errorf("simulate: %w\nstdout: %s\nstderr: %s", err, &sim.stdout, sim.stderr.tail(8<<10))
	}
	return nil
}
