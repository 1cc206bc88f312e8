package drpctap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/coder/agentstatsd/client"
)

// closeTimeout bounds the wait of Close for the service. Functions of coderd that hang take
// another second at most. So a coderd that ends within 5 s has time for the rest.
const closeTimeout = 3 * time.Second

// OpenOptions are the knobs of Open. The zero value works.
type OpenOptions struct {
	// Gatherer of the families to push: the registry that coderd's own endpoint serves;
	// nil: nothing is pushed.
	Gatherer prometheus.Gatherer
	// Logger of all that goes wrong; nil: it is not logged.
	Logger *slog.Logger
	// Push has further knobs. Its Gatherer and Logger are those above.
	Push client.PushOptions
	// Relays has further knobs. Its Logger is that above.
	Relays client.RelaysOptions
}

// link is what a Tap has of the service by Open.
type link struct {
	conn    *grpc.ClientConn
	coderd  *client.Coderd
	stop    context.CancelFunc // of the push
	pushing sync.WaitGroup
	close   func() error
}

// Open makes a Tap with all that a coderd needs of the service: a connection, as
// client.DialURL makes it, the push of its families, and relays. It does not connect, and
// does not wait for the service. Nothing else pushes in the process, or its counters count
// twice. Close it when coderd stops. For an empty URL it returns a nil Tap without an error,
// for a coderd without the service.
func Open(url string, opts OpenOptions) (*Tap, error) {
	if url == "" {
		return nil, nil
	}
	conn, err := client.DialURL(url)
	if err != nil {
		return nil, err
	}
	t, err := open(conn, opts)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return t, nil
}

func open(conn *grpc.ClientConn, opts OpenOptions) (*Tap, error) {
	opts.Push.Gatherer, opts.Push.Logger, opts.Relays.Logger = opts.Gatherer, opts.Logger, opts.Logger
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{Logger: opts.Logger})
	if err != nil {
		return nil, err
	}
	relays, err := coderd.Relays(opts.Relays)
	if err != nil {
		return nil, err
	}
	t := New(relays, Options{Logger: opts.Logger})
	ctx, stop := context.WithCancel(context.Background())
	t.link = &link{conn: conn, coderd: coderd, stop: stop, close: sync.OnceValue(t.end)}
	if opts.Gatherer == nil {
		return t, nil
	}
	pusher, err := client.NewPusher(conn, opts.Push)
	if err != nil {
		stop()
		return nil, err
	}
	t.link.pushing.Add(1)
	go func() {
		defer t.link.pushing.Done()
		if err := pusher.Run(ctx); err != nil {
			t.log.Error("coderd's families are not pushed any more", "error", err)
		}
	}()
	return t, nil
}

// Coderd returns the client for all else: syncs of registrations, reads and watches. It
// is nil, and nothing can be called, if the Tap is nil, as without the service, or was not
// made by Open. The Tap has its Relays: make no others of it.
func (t *Tap) Coderd() *client.Coderd {
	if t == nil || t.link == nil {
		return nil
	}
	return t.link.coderd
}

// Relays returns the relays of the Tap, for what no call says: goodbyes, and handles of
// connections beside those of Mux. Those of a nil Tap are nil, which relay nothing. Close
// of the Tap closes them.
func (t *Tap) Relays() *client.Relays {
	if t == nil {
		return nil
	}
	return t.relays
}

// Close sends what is pending of agents, and the last values of coderd's families, and
// closes the connection. It returns once the service has received them, at the latest
// after 4 s, whatever coderd's functions and collectors and the service do. The error says
// of how many agents not all was received. A further Close returns the same. Close is for
// a Tap that was made by Open.
func (t *Tap) Close() error {
	if t == nil || t.link == nil {
		return nil
	}
	return t.link.close()
}

func (t *Tap) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	t.link.stop()
	t.link.conn.ResetConnectBackoff() // the service may be back by now
	err := t.relays.Close(ctx)
	pushed := make(chan struct{})
	go func() {
		defer close(pushed)
		t.link.pushing.Wait()
	}()
	select {
	case <-pushed:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("push the last values: %w", ctx.Err()))
	}
	// What still uses the connection ends by that.
	return errors.Join(err, t.link.conn.Close())
}
