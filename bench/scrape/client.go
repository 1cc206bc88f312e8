package scrape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// Formats that are asked for by the Accept header, as Prometheus does.
const (
	Text     = "text"
	Protobuf = "protobuf"
)

var accepts = map[string]string{
	Text:     "text/plain;version=0.0.4",
	Protobuf: "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
}

// Ask is what a scrape asks for.
type Ask struct {
	Format string
	Gzip   bool
	// Shard is the part, as 0/4; empty: the whole.
	Shard string
}

// String names the ask in a report.
func (a Ask) String() string {
	if a.Gzip {
		return a.Format + " gzip"
	}
	return a.Format + " plain"
}

// Seen is what a client saw of a scrape.
type Seen struct {
	// FirstByte is the time to the first byte, Total that to the last.
	FirstByte, Total time.Duration
	// Bytes of the answer, with its headers.
	Bytes int64
}

// readBuffer is as much as a socket holds at most: the client is to cost
// little, as it shares the cores with the server.
const readBuffer = 256 << 10

// Client scrapes, reads and discards.
type Client struct{ buffer []byte }

// NewClient returns a client for one scrape at a time.
func NewClient() *Client { return &Client{buffer: make([]byte, readBuffer)} }

// Scrape scrapes http://addr/metrics once, over a connection of its own that
// ends with the answer. Keep, if not nil, gets all that was read.
func (c *Client) Scrape(ctx context.Context, addr string, ask Ask, keep io.Writer) (Seen, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return Seen{}, fmt.Errorf("scrape: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	encoding := "identity"
	if ask.Gzip {
		encoding = "gzip"
	}
	request := fmt.Sprintf("GET /metrics HTTP/1.1\r\nHost: %s\r\nAccept: %s\r\nAccept-Encoding: %s\r\nConnection: close\r\n\r\n",
		addr, accepts[ask.Format], encoding)
	if ask.Shard != "" {
		request = strings.Replace(request, "/metrics", "/metrics?shard="+ask.Shard, 1)
	}
	start := time.Now()
	if _, err := io.WriteString(conn, request); err != nil {
		return Seen{}, fmt.Errorf("scrape: %w", err)
	}
	var seen Seen
	var head, end []byte
	for {
		n, err := conn.Read(c.buffer)
		if n > 0 && seen.Bytes == 0 {
			seen.FirstByte = time.Since(start)
		}
		if len(head) < headBytes {
			head = append(head, c.buffer[:min(n, headBytes-len(head))]...)
		}
		end = lastBytes(end, c.buffer[:n])
		seen.Bytes += int64(n)
		if keep != nil {
			if _, err := keep.Write(c.buffer[:n]); err != nil {
				return seen, fmt.Errorf("keep a scrape: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err() // which closed the connection
			}
			return seen, fmt.Errorf("scrape: %w", err)
		}
	}
	seen.Total = time.Since(start)
	return seen, whole(head, end, seen.Bytes, ask)
}

// headBytes are enough for all headers.
const headBytes = 4 << 10

// chunkedEnd is how a chunked body ends.
var chunkedEnd = []byte("\r\n0\r\n\r\n")

func lastBytes(last, next []byte) []byte {
	if len(next) >= len(chunkedEnd) {
		return append(last[:0], next[len(next)-len(chunkedEnd):]...)
	}
	last = append(last, next...)
	return last[max(0, len(last)-len(chunkedEnd)):]
}

// whole reports whether an answer is a good one, of what was asked for, and came
// to its end.
func whole(head, end []byte, n int64, ask Ask) error {
	if n == 0 {
		return errors.New("scrape: the connection was closed without an answer")
	}
	headers, _, ok := bytes.Cut(head, []byte("\r\n\r\n"))
	if !ok || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("scrape: want status 200, got %.120q", head)
	}
	headers = bytes.ToLower(headers)
	if ask.Gzip != bytes.Contains(headers, []byte("\r\ncontent-encoding: gzip")) {
		return fmt.Errorf("scrape %v: got the headers %q", ask, headers)
	}
	if ask.Format == Protobuf != bytes.Contains(headers, []byte("\r\ncontent-type: application/vnd.google.protobuf")) {
		return fmt.Errorf("scrape %v: got the headers %q", ask, headers)
	}
	if bytes.Contains(headers, []byte("\r\ntransfer-encoding: chunked")) {
		if !bytes.Equal(end, chunkedEnd) {
			return fmt.Errorf("scrape %v: the body ends after %d bytes without its last chunk", ask, n)
		}
		return nil
	}
	_, length, ok := bytes.Cut(headers, []byte("\r\ncontent-length: "))
	if !ok {
		return fmt.Errorf("scrape %v: the body has no length: %q", ask, headers)
	}
	length, _, _ = bytes.Cut(length, []byte("\r\n"))
	if want := fmt.Sprint(n - int64(len(headers)) - 4); string(length) != want {
		return fmt.Errorf("scrape %v: want a body of %s bytes, got %s", ask, length, want)
	}
	return nil
}
