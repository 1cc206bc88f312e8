package process

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// maxLineBytes bounds a command and an answer.
const maxLineBytes = 1 << 20

// answer is a line from a child.
type answer struct {
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

// command is a line to a child.
type command struct {
	Name string          `json:"name"`
	Args json.RawMessage `json:"args,omitempty"`
}

// Console is a child's end of the lines to and from its parent.
type Console struct {
	args json.RawMessage
	in   *bufio.Scanner
	out  io.Writer
}

// Role is what a child does. It returns when it is set up and its console, by
// Serve, has ended.
type Role func(ctx context.Context, c *Console) error

// RunChild plays a role in this process: args is what StartSelf was given. It
// ends when the parent closes standard input or dies, and not by a ctrl-C, which
// is for the parent to answer.
func RunChild(ctx context.Context, role Role, args string) error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, maxLineBytes)
	c := &Console{args: json.RawMessage(args), in: in, out: os.Stdout}
	if err := role(ctx, c); err != nil {
		_ = c.write(answer{Error: err.Error()})
		return err
	}
	return nil
}

// Args decodes what the child was started with.
func (c *Console) Args(v any) error {
	if err := json.Unmarshal(c.args, v); err != nil {
		return fmt.Errorf("arguments of a child: %w", err)
	}
	return nil
}

// Handler answers a command; args are to be decoded by the function given.
type Handler func(args func(v any) error) (any, error)

// Serve reports to the parent that the child is ready and answers commands, one at a
// time, until there are no more.
func (c *Console) Serve(ready any, handlers map[string]Handler) error {
	if err := c.answer(ready, nil); err != nil {
		return err
	}
	for c.in.Scan() {
		var cmd command
		if err := json.Unmarshal(c.in.Bytes(), &cmd); err != nil {
			return fmt.Errorf("read a command: %w", err)
		}
		handle, ok := handlers[cmd.Name]
		if !ok {
			return fmt.Errorf("unknown command %q", cmd.Name)
		}
		v, err := handle(func(v any) error { return json.Unmarshal(cmd.Args, v) })
		if err := c.answer(v, err); err != nil {
			return err
		}
	}
	return c.in.Err()
}

func (c *Console) answer(v any, failed error) error {
	if failed != nil {
		return c.write(answer{Error: failed.Error()})
	}
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	return c.write(answer{Value: value})
}

func (c *Console) write(a answer) error {
	line, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	_, err = c.out.Write(append(line, '\n'))
	return err
}
