// Package preflight looks whether what a service needs is there and fits. It changes nothing.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coder/agentstatsd/secrets"
)

// Step looks at one thing.
type Step struct {
	Name string
	// Run returns what was found, or what is wrong.
	Run func(context.Context) (found string, err error)
}

// Run runs the steps and writes a line about each. The error says how many failed. redact
// takes out of an error what is not for everybody.
func Run(ctx context.Context, w io.Writer, redact func(error) string, steps ...Step) error {
	failed := 0
	for _, s := range steps {
		found, err := s.Run(ctx)
		line := fmt.Sprintf("ok     %s: %s\n", s.Name, found)
		if err != nil {
			failed++
			line = fmt.Sprintf("WRONG  %s: %s\n", s.Name, redact(err))
		}
		if _, err := io.WriteString(w, line); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(steps))
	}
	return nil
}

// mayWrite is the mode of access(2).
const mayWrite = 2

// Dir looks whether a service may keep its files, of these names, in dir, or may make dir.
func Dir(dir string, names []string) (found string, err error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		parent := filepath.Dir(filepath.Clean(dir))
		for parent != filepath.Dir(parent) {
			if _, err := os.Stat(parent); !errors.Is(err, fs.ErrNotExist) {
				break
			}
			parent = filepath.Dir(parent)
		}
		if err := syscall.Access(parent, mayWrite); err != nil {
			return "", ExplainDir(fmt.Errorf("%s is not there, and cannot be made in %s: %w", dir, parent, err))
		}
		return dir + " is not there: it is made at the start", nil
	}
	if err := secrets.CheckDir(dir); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := secrets.CheckOwn(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	if err := syscall.Access(dir, mayWrite); err != nil {
		return "", ExplainDir(fmt.Errorf("write to %s: %w", dir, err))
	}
	return dir, nil
}

// ExplainDir returns an error about the data directory with what can be done about it.
func ExplainDir(err error) error {
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS) {
		return err
	}
	return fmt.Errorf("%w: give user %d the right to write there (chown), or name another directory by --data-dir", err, os.Geteuid())
}

// ExplainListen returns an error about the address of a flag with what can be done about it.
func ExplainListen(err error, flag string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another process listens there, perhaps another agentstatsd (ss -ltnp shows it): stop it, or give another address by --%s", err, flag)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; give another one by --%s", err, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: this machine does not have that address; give another one by --%s", err, flag)
	}
	return err
}

// Engine is what carries messages. pubsub.Engine is one.
type Engine interface {
	Run(ctx context.Context) error
	Connected() error
}

// connectTime bounds the wait for a connection, look is the time between two looks.
const (
	connectTime = 10 * time.Second
	look        = 20 * time.Millisecond
)

// Connects runs an engine until it is connected, and returns why it is not.
func Connects(ctx context.Context, e Engine) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	err := e.Connected()
	for err != nil && ctx.Err() == nil {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
		err = e.Connected()
	}
	cancel()
	return errors.Join(err, <-ended)
}
