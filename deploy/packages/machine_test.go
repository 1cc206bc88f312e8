package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// machine is a copy of this machine under a systemd of its own: testdata/machine.sh.
type machine struct {
	t      *testing.T
	pid    int    // of its systemd
	shared string // directory that is /mnt there
}

// requireRoot fails a test that mounts, or makes files of other users, unless root runs it.
func requireRoot(t *testing.T) {
	t.Helper()
	require.Zero(t, os.Geteuid(), "this test needs root, for mounts and files of other users")
}

// cgroups returns the directory of the unified hierarchy, which is mounted if it is not.
func cgroups(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 `).FindSubmatch(mounts)
	if found != nil {
		return string(found[1])
	}
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "cgroup2", "cgroup2", dir).CombinedOutput()
	require.NoError(t, err, "the packages are tested under systemd, which needs cgroup2: %s", out)
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", dir).Run()) })
	return dir
}

// newMachine starts a machine, and ends it with the test.
func newMachine(t *testing.T) *machine {
	t.Helper()
	requireRoot(t)
	m := &machine{t: t, shared: t.TempDir()}
	require.NoError(t, os.Chmod(m.shared, 0o755))
	script, err := filepath.Abs("testdata/machine.sh")
	require.NoError(t, err)
	group := filepath.Join(cgroups(t), fmt.Sprintf("agentstatsd-packages-%d", os.Getpid()))
	var log bytes.Buffer
	cmd := exec.Command(script, group, m.shared)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		if m.pid != 0 {
			_ = syscall.Kill(m.pid, syscall.SIGKILL)
		} else {
			_ = cmd.Process.Kill()
		}
		<-exited
		require.Eventually(t, func() bool {
			return exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run() == nil
		}, 30*time.Second, 50*time.Millisecond)
	})
	deadline := time.Now().Add(60 * time.Second)
	for m.pid == 0 || !strings.Contains(m.try("systemctl", "is-system-running"), "running") {
		select {
		case err := <-exited:
			exited <- err
			require.Fail(t, "the machine has ended", "%v\n%s", err, &log)
		case <-time.After(50 * time.Millisecond):
		}
		require.True(t, time.Now().Before(deadline), "the machine does not run")
		m.pid = firstProcess(cmd.Process.Pid)
	}
	return m
}

// firstProcess returns the process that is the first one in a namespace below parent; 0:
// there is none yet.
func firstProcess(parent int) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	for _, child := range strings.Fields(string(children)) {
		status, _ := os.ReadFile(filepath.Join("/proc", child, "status"))
		pid, _ := strconv.Atoi(child)
		if regexp.MustCompile(`(?m)^NSpid:\s+\d+\s+1$`).Match(status) {
			if bytes.HasPrefix(status, []byte("Name:\tsystemd\n")) {
				return pid
			}
			continue
		}
		if found := firstProcess(pid); found != 0 {
			return found
		}
	}
	return 0
}

// command returns a command that runs in the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--root", "--wd", "--"}, args...)...)
}

// try runs a command and returns what it wrote, whatever its exit code is.
func (m *machine) try(args ...string) string {
	out, _ := m.command(args...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// run runs a command that succeeds and returns what it wrote.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	require.NoError(m.t, err, "%q: %s\n%s", args, out, m.journal())
	return strings.TrimSpace(string(out))
}

// fail runs a command that fails and returns what it wrote.
func (m *machine) fail(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	require.Error(m.t, err, "%q: %s", args, out)
	return string(out)
}

// write writes a file there.
func (m *machine) write(path, text string) {
	m.t.Helper()
	cmd := m.command("sh", "-c", `mkdir -p "$(dirname "$0")" && cat >"$0"`, path)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	require.NoError(m.t, err, "%s: %s", path, out)
}

// property returns a property of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--property", name, "--value", unit)
}

// await runs a command until what it wrote has text.
func (m *machine) await(text string, args ...string) {
	m.t.Helper()
	var last string
	require.Eventually(m.t, func() bool { last = m.try(args...); return strings.Contains(last, text) }, 3*time.Minute, 50*time.Millisecond,
		"%q has no %q", args, text)
}

// journal returns the last lines of the units.
func (m *machine) journal() string {
	return m.try("journalctl", "--no-pager", "--lines", "60", "--unit", "agentstatsd*")
}
