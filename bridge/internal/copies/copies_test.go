package copies

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/bubble"
)

// decoder keeps what it reads.
type decoder struct {
	read   []byte // each byte after that of its direction
	err    error
	panics bool
	closed int
}

func (d *decoder) Read(fromAgent bool, b []byte) error {
	if d.panics {
		panic("ouch")
	}
	for i := range b {
		d.read = append(d.read, direction(fromAgent), b[i])
		b[i] = 0 // it is the decoder's to change
	}
	return d.err
}

func (d *decoder) Close() { d.closed++ }

func direction(fromAgent bool) byte {
	if fromAgent {
		return 'a'
	}
	return 'c'
}

// run runs Copies within a bubble.
func run(t *testing.T, budget int64, f func(*Copies, *decode.Budget)) {
	bubble.Test(t, func(t *testing.T) {
		b := decode.NewBudget(budget)
		c := New(b)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		f(c, b)
		cancel()
		require.NoError(t, <-done)
		require.Zero(t, b.Used())
	})
}

func settle() {
	time.Sleep(delay)
	synctest.Wait()
}

// Bytes are decoded in the order in which both directions had them, and the decoder is closed
// after the last.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		run(t, 1<<20, func(c *Copies, _ *decode.Budget) {
			d := &decoder{}
			p := c.Open(d, func(err error) { t.Error(err) })
			var want []byte
			for i := range rapid.IntRange(0, 20).Draw(rt, "parts") {
				fromAgent := rapid.Bool().Draw(rt, "from agent")
				b := bytes.Repeat([]byte{byte(i + 1)}, rapid.OneOf(rapid.IntRange(0, 20), rapid.IntRange(4000, 9000)).Draw(rt, "size"))
				for range b {
					want = append(want, direction(fromAgent), byte(i+1))
				}
				p.Add(fromAgent, b)
				require.Equal(t, bytes.Repeat([]byte{byte(i + 1)}, len(b)), b, "the bytes are not ours to change")
				if rapid.Bool().Draw(rt, "round") {
					settle()
				}
			}
			p.Close()
			p.Close()
			settle()
			require.True(t, bytes.Equal(want, d.read))
			require.Equal(t, 1, d.closed)
		})
	})
}

// A decoder that is behind, fails or panics ends alone.
func TestEnds(t *testing.T) {
	for name, test := range map[string]struct {
		decoder decoder
		add     func(*Copy)
		want    decode.Reason
	}{
		"behind": {add: func(p *Copy) { p.Add(true, make([]byte, 257<<10)) }, want: ReasonBehind},
		"error":  {decoder: decoder{err: decode.NewError("test", "an error")}, add: func(p *Copy) { p.Add(true, []byte("x")) }, want: "test"},
		"panic":  {decoder: decoder{panics: true}, add: func(p *Copy) { p.Add(true, []byte("x")) }, want: ReasonPanic},
		"memory": {add: func(p *Copy) { p.Add(true, make([]byte, 130<<10)) }, want: decode.ReasonMemory},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, map[bool]int64{true: 128 << 10, false: 1 << 20}[name == "memory"], func(c *Copies, budget *decode.Budget) {
				d := test.decoder
				var ended []error
				p := c.Open(&d, func(err error) { ended = append(ended, err) })
				other := &decoder{}
				q := c.Open(other, func(err error) { t.Error(err) })
				test.add(p)
				settle()
				require.Len(t, ended, 1)
				var err *decode.Error
				require.True(t, errors.As(ended[0], &err))
				require.Equal(t, test.want, err.Reason)
				require.Equal(t, 1, d.closed)
				p.Add(true, []byte("more"))
				require.Zero(t, budget.Used())
				q.Add(false, []byte("x"))
				p.Close()
				q.Close()
				settle()
				require.Len(t, ended, 1)
				require.Equal(t, 1, d.closed)
				require.Equal(t, "cx", string(other.read))
			})
		})
	}
}

// Whoever sends little by turns takes no more memory than others: a block that is not full
// counts as one.
func TestTurns(t *testing.T) {
	run(t, 1<<20, func(c *Copies, budget *decode.Budget) {
		h := make(hanging)
		var ended error
		p := c.Open(h, func(err error) { ended = err })
		p.Add(true, []byte("x"))
		settle()
		for i := range 10_000 {
			p.Add(i%2 == 0, []byte("x"))
			require.LessOrEqual(t, budget.Used(), int64(maxPending))
		}
		close(h)
		settle()
		settle()
		require.ErrorContains(t, ended, "want at most 262144")
		p.Close()
		settle()
	})
}

// keeper is a decoder that changes nothing.
type keeper struct{}

func (keeper) Read(bool, []byte) error { return nil }
func (keeper) Close()                  {}

// Nothing that passed stays in a block.
func TestBlocksAreCleared(t *testing.T) {
	run(t, 1<<20, func(c *Copies, _ *decode.Budget) {
		p := c.Open(keeper{}, nil)
		p.Add(true, []byte("secret"))
		p.mu.Lock()
		k := p.first
		p.mu.Unlock()
		settle()
		require.Equal(t, make([]byte, blockBytes), k.bytes[:])
		p.Close()
		settle()
	})
}

// Much of one connection waits for no round.
func TestMuch(t *testing.T) {
	run(t, 1<<20, func(c *Copies, _ *decode.Budget) {
		d := &decoder{}
		p := c.Open(d, nil)
		p.Add(true, make([]byte, 60<<10))
		synctest.Wait()
		require.Empty(t, d.read)
		for i := range 1000 {
			p.Add(i%2 == 0, make([]byte, 10<<10))
		}
		require.Greater(t, len(d.read), 2*9900<<10)
		p.Close()
		settle()
		require.Len(t, d.read, 2*(10_000+60)<<10)
	})
}

// hanging is a decoder that waits until its channel is closed.
type hanging chan struct{}

func (h hanging) Read(bool, []byte) error { <-h; return nil }
func (h hanging) Close()                  {}

// Who adds waits for no decoder that hangs. It is given up.
func TestDecoderThatHangs(t *testing.T) {
	run(t, 1<<20, func(c *Copies, _ *decode.Budget) {
		h := make(hanging)
		var ended error
		p := c.Open(h, func(err error) { ended = err })
		p.Add(true, []byte("x"))
		settle()
		for range 100 {
			p.Add(true, make([]byte, 10<<10))
		}
		synctest.Wait()
		close(h)
		settle()
		settle()
		require.ErrorContains(t, ended, "bytes wait to be decoded: want at most 262144")
		p.Close()
		settle()
	})
}
