package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/coder/agentstatsd/bench/figure"
	"github.com/coder/agentstatsd/bench/load"
	"github.com/coder/agentstatsd/bench/process"
)

// SendersArgs are what a process of senders is started with.
type SendersArgs struct {
	// Target is the server's address.
	Target string
	// First and Count of the agents.
	First, Count int
	// Samples of a report.
	Samples int
	// Unknown has a field added that the contract does not know.
	Unknown bool
	// Acking of the server.
	Acking Acking
	// Shared has the agents share one connection, as behind a proxy; otherwise each has
	// one of its own.
	Shared bool
	// CA is a file that verifies the server; empty: plaintext.
	CA string
}

// Tally is what senders saw.
type Tally struct {
	Sent, Acks int64
	// Skipped reports were due while too many were in flight.
	Skipped int64
	// Latencies of acks in milliseconds: the median, the 99th percentile, that of
	// 99.9, and the longest.
	P50, P99, P999, Max float64
	// Seconds from the first report to the last ack.
	Seconds float64

	latencies []float64
}

// BusyArgs have all senders send as fast as they may.
type BusyArgs struct {
	Milliseconds int
	// Reports of each sender instead; 0: until the time is over.
	Reports int
}

// PacedArgs have reports sent at a fixed rate, whatever becomes of them.
type PacedArgs struct {
	Milliseconds int
	// Rate of all senders together, a second.
	Rate float64
}

// senders are the agents of one process.
type senders struct {
	args  SendersArgs
	conns []*grpc.ClientConn
	all   []*sender
	creds credentials.TransportCredentials
	next  int // the sender whose turn it is
}

// opening bounds how many streams are opened at once.
const opening = 32

// portsPerAddress is how many connections get one address as their source: there
// are about 28,000 ports for them.
const portsPerAddress = 10_000

func sendReports(ctx context.Context, c *process.Console) error {
	var args SendersArgs
	if err := c.Args(&args); err != nil {
		return err
	}
	s := &senders{args: args, creds: insecure.NewCredentials()}
	if args.CA != "" {
		var err error
		if s.creds, err = credentials.NewClientTLSFromFile(args.CA, ""); err != nil {
			return fmt.Errorf("read the authority: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.close()
	defer cancel()
	if err := s.open(ctx); err != nil {
		return err
	}
	return c.Serve(nil, map[string]process.Handler{
		"busy": func(decode func(any) error) (any, error) {
			var args BusyArgs
			if err := decode(&args); err != nil {
				return nil, err
			}
			return s.busy(args)
		},
		"paced": func(decode func(any) error) (any, error) {
			var args PacedArgs
			if err := decode(&args); err != nil {
				return nil, err
			}
			return s.paced(args)
		},
	})
}

func (s *senders) close() {
	for _, conn := range s.conns {
		_ = conn.Close()
	}
}

// source returns the loopback address from which agent n connects. Each process
// has others: the ports of one that has ended are not free at once.
func source(n int) net.IP {
	pid := os.Getpid()
	return net.IPv4(127, byte(pid>>8), byte(pid), byte(1+n/portsPerAddress))
}

func (s *senders) dial(n int) (*grpc.ClientConn, error) {
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(s.creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{})),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: source(n)}}
			return d.DialContext(ctx, "tcp", addr)
		}),
	}
	if s.args.Count > opening && !s.args.Shared {
		opts = append(opts, grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	}
	conn, err := grpc.NewClient("passthrough:///"+s.args.Target, opts...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", s.args.Target, err)
	}
	return conn, nil
}

func (s *senders) open(ctx context.Context) error {
	s.all = make([]*sender, s.args.Count)
	connections := s.args.Count
	if s.args.Shared {
		connections = 1
	}
	for i := range connections {
		conn, err := s.dial(s.args.First + i)
		if err != nil {
			return err
		}
		s.conns = append(s.conns, conn)
	}
	var group errgroup.Group
	group.SetLimit(opening)
	for i := range s.all {
		group.Go(func() error {
			n := s.args.First + i
			template, err := load.NewTemplate(n, s.args.Samples, s.args.Unknown)
			if err != nil {
				return err
			}
			header := metadata.Pairs("authorization", "Bearer "+load.Token(n))
			s.all[i], err = open(metadata.NewOutgoingContext(ctx, header), s.conns[i%connections], n, template, s.args.Acking)
			return err
		})
	}
	return group.Wait()
}

// busy has all senders send at once, for a time or a number of reports.
func (s *senders) busy(args BusyArgs) (*Tally, error) {
	start := time.Now()
	deadline := start.Add(time.Duration(args.Milliseconds) * time.Millisecond)
	var total atomic.Int64
	var wg sync.WaitGroup
	failed := make([]error, len(s.all))
	for i, sender := range s.all {
		wg.Go(func() {
			var sent int
			for args.Reports > sent || args.Reports == 0 && time.Now().Before(deadline) {
				if _, err := sender.send(true); err != nil {
					failed[i] = err
					return
				}
				sent++
			}
			total.Add(int64(sent))
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	return s.tally(&Tally{Sent: total.Load()}, start)
}

// pace is how often due reports are sent.
const pace = time.Millisecond

// paced sends reports at a rate, the senders in turn.
func (s *senders) paced(args PacedArgs) (*Tally, error) {
	t := new(Tally)
	start := time.Now()
	length := time.Duration(args.Milliseconds) * time.Millisecond
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		elapsed := min(time.Since(start), length)
		for due := int64(elapsed.Seconds() * args.Rate); t.Sent+t.Skipped < due; {
			sent, err := s.all[s.next].send(false)
			if err != nil {
				return nil, err
			}
			s.next = (s.next + 1) % len(s.all)
			if sent {
				t.Sent++
			} else {
				t.Skipped++
			}
		}
		if elapsed == length {
			return s.tally(t, start)
		}
		<-ticker.C
	}
}

// awaitTimeout bounds the wait for the last acks.
const awaitTimeout = 30 * time.Second

// tally waits for the acks of all that was sent.
func (s *senders) tally(t *Tally, start time.Time) (*Tally, error) {
	timeout := time.AfterFunc(awaitTimeout, func() {
		fmt.Fprintln(os.Stderr, "acks are overdue")
		os.Exit(1)
	})
	defer timeout.Stop()
	for _, sender := range s.all {
		if err := sender.await(); err != nil {
			return nil, err
		}
	}
	t.Seconds = time.Since(start).Seconds()
	for _, sender := range s.all {
		sender.take(t)
	}
	if len(t.latencies) > 0 {
		t.P50, t.P99 = figure.Percentile(t.latencies, 50), figure.Percentile(t.latencies, 99)
		t.P999 = figure.Percentile(t.latencies, 99.9)
		t.Max = slices.Max(t.latencies)
	}
	return t, nil
}
