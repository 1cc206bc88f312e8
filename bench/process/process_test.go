package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// roles that this test plays when it is started as its own child.
var roles = map[string]Role{
	"echo": func(_ context.Context, c *Console) error {
		var greeting string
		if err := c.Args(&greeting); err != nil {
			return err
		}
		return c.Serve(greeting+" back", map[string]Handler{
			"add": func(args func(any) error) (any, error) {
				var n []int
				if err := args(&n); err != nil {
					return nil, err
				}
				return n[0] + n[1], nil
			},
			"fail": func(func(any) error) (any, error) { return nil, errors.New("as asked") },
			"die":  func(func(any) error) (any, error) { panic("the end") },
			"burn": func(func(any) error) (any, error) {
				for start := time.Now(); time.Since(start) < 50*time.Millisecond; {
				}
				return nil, nil
			},
		})
	},
	"broken": func(context.Context, *Console) error { return errors.New("it cannot start") },
}

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		if err := RunChild(context.Background(), roles[os.Args[2]], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestKilobytes(t *testing.T) {
	text := []byte("Name:\tbench\nVmHWM:\t    1024 kB\nRss:                 12 kB\nThreads:\t7\n")
	n, err := kilobytes(text, "VmHWM")
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, n)
	n, err = kilobytes(text, "Rss")
	require.NoError(t, err)
	require.EqualValues(t, 12<<10, n)
	for _, name := range []string{"Threads", "Pss"} {
		_, err = kilobytes(text, name)
		require.ErrorContains(t, err, name)
	}
}

func TestChild(t *testing.T) {
	var ready string
	c, err := StartSelf(t.Context(), "echo", "hello", &ready)
	require.NoError(t, err)
	defer c.Stop()
	require.Equal(t, "hello back", ready)

	var sum int
	require.NoError(t, c.Call("add", []int{2, 3}, &sum))
	require.Equal(t, 5, sum)
	require.EqualError(t, c.Call("fail", nil, nil), "fail: as asked")

	before, err := c.CPU()
	require.NoError(t, err)
	require.NoError(t, c.Call("burn", nil, nil))
	after, err := c.CPU()
	require.NoError(t, err)
	require.Greater(t, after, before)
	rss, err := c.RSS()
	require.NoError(t, err)
	require.Greater(t, rss, int64(1<<20))

	c.Stop()
	c.Stop()
	require.Error(t, c.Call("add", []int{2, 3}, &sum))
}

func TestChildThatDies(t *testing.T) {
	c, err := StartSelf(t.Context(), "echo", "hello", nil)
	require.NoError(t, err)
	defer c.Stop()
	require.ErrorContains(t, c.Call("die", nil, nil), "panic: the end", "its log is in the error")
}

func TestChildThatCannotStart(t *testing.T) {
	_, err := StartSelf(t.Context(), "broken", nil, nil)
	require.EqualError(t, err, "start broken: it cannot start")
}

func TestChildEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, err := StartSelf(ctx, "echo", "hello", nil)
	require.NoError(t, err)
	cancel()
	select {
	case <-c.Exited():
	case <-time.After(10 * time.Second):
		t.Fatal("the child lives on")
	}
}

func TestTail(t *testing.T) {
	w := new(tail)
	for i := range 10_000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
	require.LessOrEqual(t, len(w.String()), 2*tailBytes)
	require.Contains(t, w.String(), "line 9999\n")
}
