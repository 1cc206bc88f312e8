package integration

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/freeport"
)

// manager is a service manager as a process sees it: the socket of sd_notify(3), which it
// reads all the time.
type manager struct {
	t        *testing.T
	path     string
	messages chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t, filepath.Join(t.TempDir(), "notify"), make(chan string, 100_000)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for b := make([]byte, 8192); ; {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			m.messages <- string(b[:n])
		}
	}()
	return m
}

// await returns the first message that matches a pattern. It drops those before it.
func (m *manager) await(pattern string) string {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(startPatience)
	var seen []string
	for {
		select {
		case message := <-m.messages:
			if re.MatchString(message) {
				return message
			}
			seen = append(seen, message)
		case <-deadline:
			require.Fail(m.t, "no message", "want %s, got %q", pattern, seen)
		}
	}
}

// startProcess starts a command of the program, whose log is shown when a test fails.
func startProcess(t *testing.T, environ []string, args ...string) (*exec.Cmd, *lockedBuffer) {
	t.Helper()
	log := new(lockedBuffer)
	cmd := exec.Command(binary, args...)
	cmd.Stderr = log
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") }), environ...)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", args[0], log.tail(8<<10))
		}
	})
	return cmd, log
}

// TestServiceManager starts each command that serves as a service manager does that waits
// for READY=1, reloads it well and badly, and stops it.
func TestServiceManager(t *testing.T) {
	parallel(t)
	for _, command := range []string{"serve", "bridge", "all-in-one"} {
		t.Run(command, func(t *testing.T) {
			beside(t)
			dir, httpAddr := t.TempDir(), freeport.Addr()
			file := filepath.Join(dir, "config.yaml")
			write := func(text string) { require.NoError(t, os.WriteFile(file, []byte(text), 0o600)) }
			write("logging:\n  max_per_minute: 1000\n")
			args := []string{command, "--config", file, "--prometheus-address", httpAddr}
			if command != "bridge" {
				args = append(args, "--grpc-address", freeport.Addr(), "--data-dir", filepath.Join(dir, "data"))
			}
			if command != "serve" {
				args = append(args, "--drain-delay", "1s", "--upstream", "http://"+freeport.Addr(), "--listen", freeport.Addr())
			}
			if command == "bridge" {
				token := filepath.Join(dir, "token")
				require.NoError(t, os.WriteFile(token, []byte("a-token-of-coderd-16"), 0o600))
				args = append(args, "--service-url", "agentstatsd://"+freeport.Addr()+"?plaintext=true&token_file="+token)
			}
			m := newManager(t)
			cmd, _ := startProcess(t, []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=200000"}, args...)

			m.await(`^READY=1\nWATCHDOG=1\nSTATUS=`)
			resp, err := http.Get("http://" + httpAddr + "/-/healthy")
			require.NoError(t, err, "it serves when it says so")
			require.NoError(t, resp.Body.Close())
			m.await(`^WATCHDOG=1`)
			m.await(`^WATCHDOG=1`)

			require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
			m.await(`^RELOADING=1\nMONOTONIC_USEC=\d+$`)
			m.await(`^READY=1\nWATCHDOG=1\nSTATUS=ready, `)
			write("logging:\n  max_per_minute: -1\n")
			require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
			m.await(`^RELOADING=1\n`)
			require.Regexp(t, `STATUS=.* warning: .*the configuration was not reloaded.*line 2: logging.max_per_minute`, m.await(`^READY=1\n`))

			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			m.await(`^STOPPING=1$`)
			if command != "serve" { // whose stop has nothing to wait for
				m.await(`^WATCHDOG=1`)
			}
			require.NoError(t, cmd.Wait())
		})
	}
}

// Its line says how many sessions there are.
func TestServiceManagerSeesSessions(t *testing.T) {
	beside(t)
	m := newManager(t)
	dir, grpcAddr := t.TempDir(), freeport.Addr()
	startProcess(t, []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=200000"}, "serve", "--grpc-address", grpcAddr, "--prometheus-address", freeport.Addr(), "--data-dir", dir)
	m.await(`STATUS=ready, 0 sessions$`)
	sim := runSimulation(t, "--target", grpcAddr, "--coderd-token-file", filepath.Join(dir, "coderd-token"), "--agents", "3", "--json")
	m.await(`STATUS=ready, 3 sessions$`)
	require.NoError(t, sim.stop())
	m.await(`STATUS=ready, 0 sessions$`)
}

// Without a manager nothing is sent, looked at or logged; one that is gone is logged once.
func TestWithoutServiceManager(t *testing.T) {
	parallel(t)
	gone := filepath.Join(t.TempDir(), "gone")
	for name, tc := range map[string]struct {
		environ []string
		lines   int
	}{
		"none": {nil, 0},
		"gone": {[]string{"NOTIFY_SOCKET=" + gone}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			beside(t)
			httpAddr := freeport.Addr()
			cmd, log := startProcess(t, tc.environ, "serve", "--prometheus-address", httpAddr, "--grpc-address", freeport.Addr(), "--data-dir", t.TempDir())
			logged := func(text string) func() bool {
				return func() bool { return strings.Contains(log.tail(64<<10), text) }
			}
			require.Eventually(t, func() bool {
				resp, err := http.Get("http://" + httpAddr + "/-/ready")
				return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
			}, startPatience, 10*time.Millisecond)
			require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
			require.Eventually(t, logged("the configuration was reloaded"), startPatience, 10*time.Millisecond)
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait())
			require.Equal(t, tc.lines, strings.Count(log.tail(64<<10), "service manager cannot be notified"))
		})
	}
}
