package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// stopTimeout is how long a process may take to end by itself.
const stopTimeout = 15 * time.Second

// Process is a running process that is measured.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of the exit; after exited is closed
	log    *tail
}

// Child is a process of this same program, that plays one of its roles.
type Child struct {
	*Process
	in  io.WriteCloser
	out *bufio.Scanner
}

// StartSelf starts a child in a role and waits until it is ready. It decodes the
// child's first line into ready, unless that is nil. The child is killed when ctx ends.
func StartSelf(ctx context.Context, role string, args, ready any) (*Child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	text, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encode arguments: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, "child", role, string(text))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	// A pipe of our own: that of exec is closed by Wait, maybe before it is read.
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	cmd.Stdout = writer
	p, err := start(cmd)
	_ = writer.Close()
	if err != nil {
		_ = reader.Close()
		return nil, err
	}
	out := bufio.NewScanner(reader)
	out.Buffer(nil, maxLineBytes)
	c := &Child{Process: p, in: in, out: out}
	if err := c.read(ready); err != nil {
		c.Stop()
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return c, nil
}

// Start starts another program. It is killed when ctx ends.
func Start(ctx context.Context, path string, args ...string) (*Process, error) {
	return start(exec.CommandContext(ctx, path, args...))
}

// starter is a thread that lives as long as the program. A child with Pdeathsig is
// killed when the thread that started it ends.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{cmd: cmd, exited: make(chan struct{}), log: new(tail)}
	cmd.Stderr = p.log
	cmd.WaitDelay = stopTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Call has a child carry out a command and decodes its answer into reply, unless
// that is nil.
func (c *Child) Call(name string, args, reply any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("%s: encode arguments: %w", name, err)
	}
	line, err := json.Marshal(command{Name: name, Args: raw})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := c.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", name, errors.Join(err, c.failure()))
	}
	if err := c.read(reply); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *Child) read(reply any) error {
	if !c.out.Scan() {
		return errors.Join(errors.New("the child ended"), c.out.Err(), c.failure())
	}
	var a answer
	if err := json.Unmarshal(c.out.Bytes(), &a); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	if reply == nil {
		return nil
	}
	return json.Unmarshal(a.Value, reply)
}

// Stop ends a child. It may be called twice.
func (c *Child) Stop() {
	_ = c.in.Close()
	c.wait()
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// CPU that the process has used.
func (p *Process) CPU() (time.Duration, error) { return CPU(p.PID()) }

// RSS of the process, in bytes.
func (p *Process) RSS() (int64, error) { return RSS(p.PID()) }

// Stop asks the process to end, and kills it if it does not. It may be called
// twice.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.wait()
}

// Kill ends the process at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

func (p *Process) wait() {
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		p.Kill()
	}
}

// failure returns why a process ended.
func (p *Process) failure() error {
	select {
	case <-p.exited:
	case <-time.After(time.Second):
		return nil
	}
	return fmt.Errorf("process %d: %w\n%s", p.PID(), p.err, p.log.String())
}

// Log returns the end of what the process wrote to standard error.
func (p *Process) Log() string { return p.log.String() }

// tail keeps the end of a log.
type tail struct {
	mu sync.Mutex
	// Guarded by mu.
	text []byte
}

const tailBytes = 4 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if len(t.text) > 2*tailBytes {
		t.text = bytes.Clone(t.text[len(t.text)-tailBytes:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
