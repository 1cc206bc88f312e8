package postgrestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// account is whom the servers run as, since they refuse to run as root: nil is
// ourselves.
var account = sync.OnceValues(func() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, err
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("there is no user postgres and no user nobody to run it as")
})

// newDir makes a directory that the servers' user owns. It is not that of a
// test: other users cannot go there.
func newDir() (string, error) {
	as, err := account()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "postgrestest")
	if err != nil {
		return "", err
	}
	if as != nil {
		err = os.Chown(dir, int(as.Uid), int(as.Gid))
	}
	return dir, err
}

// find returns the path of a binary: in PATH, or where Debian has it.
func find(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	installed, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil {
		return "", err
	}
	if len(installed) > 0 {
		return slices.MaxFunc(installed, func(a, b string) int { return version(a) - version(b) }), nil
	}
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("%s is not installed: run `make servers`", name)
}

// version is the 15 of /usr/lib/postgresql/15/bin/postgres; 0 if it is none.
func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

// command is a program as the servers' user.
func command(name string, args ...string) (*exec.Cmd, error) {
	as, err := account()
	if err != nil {
		return nil, err
	}
	path, err := find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), path, args...)
	cmd.Dir = "/" // ours may be one that the user cannot read
	// If the test is killed, its servers go.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGQUIT}
	return cmd, nil
}

// process is a server.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how, after done
}

func startProcess(log, name string, args ...string) (*process, error) {
	cmd, err := command(name, args...)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cmd.Stdout, cmd.Stderr = file, file
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The signal of a parent's death comes when the thread that started the
		// process ends: this one does not before the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// waitReady waits until try succeeds.
func (p *process) waitReady(try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w\n%s", errors.Join(p.err, err), p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w\n%s", err, p.logTail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop asks the process to end, and waits for it.
func (p *process) stop(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("it does not end: %w\n%s", p.cmd.Process.Kill(), p.logTail())
	}
}

func (p *process) logTail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}
