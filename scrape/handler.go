// Package scrape serves a registry over HTTP. The handler negotiates format and
// encoding. Workers make segments of one scrape at once. Connections gather what
// net/http writes in parts.
package scrape

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/coder/agentstatsd/internal/recurring"
	"github.com/coder/agentstatsd/metrics"
)

// registryBuffer buffers the short writes of expfmt.
const registryBuffer = 32 << 10

// Registry has the service's own families. metrics.Registry is one.
type Registry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// NewHandler returns the scrape handler: reg's families, then those of parts in
// their order, in text 0.0.4 or delimited protobuf, plain or compressed with
// gzip. It answers GET and HEAD. A query ?shard=0/4 asks for one of four parts that have
// each series once; the first one has all of reg's.
//
// What reg fails to gather is counted and left out. The rest is served with status
// 200. If a part returns an error, the connection is cut: no client takes half a
// scrape for a whole one.
//
// The handler registers families of its own in reg. Call NewHandler once for each
// registry.
func NewHandler(reg Registry, opts Options, parts ...metrics.Exposer) (http.Handler, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("scrape options: %w", err)
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, fmt.Errorf("scrape: %w", err)
	}
	return promhttp.InstrumentMetricHandler(reg, &handler{reg: reg, opts: opts, parts: parts, metrics: m}), nil
}

type handler struct {
	reg     Registry
	opts    Options
	parts   []metrics.Exposer
	metrics *ownMetrics
	// What the log has of scrapes that are not whole.
	cut, lacking recurring.Events
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD are served here", http.StatusMethodNotAllowed)
		return
	}
	format := expfmt.NegotiateAccept(r.Header, expfmt.FmtText, expfmt.FmtProtoDelim)
	header := w.Header()
	header.Add("Vary", "Accept")
	header.Add("Vary", "Accept-Encoding")
	compress, ok := chooseGzip(r.Header.Values("Accept-Encoding"))
	if !ok {
		http.Error(w, "gzip and identity are the encodings here, and Accept-Encoding excludes both", http.StatusNotAcceptable)
		return
	}
	shard, err := shardOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	header.Set("Content-Type", string(format))
	encoding := encodingIdentity
	if compress {
		encoding = encodingGzip
		header.Set("Content-Encoding", encoding)
	}
	if r.Method == http.MethodHead {
		return
	}

	start := time.Now()
	control := http.NewResponseController(w)
	// A connection without deadlines belongs to a test, or to a wrapper that sets
	// its own.
	_ = control.SetWriteDeadline(start.Add(h.opts.WriteTimeout))
	out := &scrapeWriter{w: w, conn: connOf(r)}
	err = h.write(out, format, compress, shard)
	h.metrics.bytes.WithLabelValues(encoding).Add(float64(out.n))
	switch {
	case out.err != nil:
		h.metrics.errors.WithLabelValues(causeWrite).Inc()
		return
	case err != nil:
		h.metrics.errors.WithLabelValues(causePart).Inc()
		h.cut.Log(r.Context(), h.opts.Log, slog.LevelError, "scrapes", 1, "scrape cut short", "error", err)
		panic(http.ErrAbortHandler)
	}
	h.metrics.duration.WithLabelValues(formatName(format)).Observe(time.Since(start).Seconds())
	h.metrics.last.SetToCurrentTime()
	// The deadline covers the flush. It must not end the connection's next request.
	if control.Flush() == nil {
		_ = control.SetWriteDeadline(time.Time{})
	}
}

// shardOf returns the shard that a request asks for.
func shardOf(r *http.Request) (metrics.Shard, error) {
	if r.URL.RawQuery == "" {
		return metrics.Shard{}, nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return metrics.Shard{}, fmt.Errorf("query: %w", err)
	}
	switch shards := query["shard"]; len(shards) {
	case 0:
		return metrics.Shard{}, nil
	case 1:
		return metrics.ParseShard(shards[0])
	default:
		return metrics.Shard{}, fmt.Errorf("shard: want one, got %d", len(shards))
	}
}

// write writes the exposition. An error is that of w or of a part.
func (h *handler) write(w io.Writer, format expfmt.Format, compress bool, shard metrics.Shard) error {
	p := newPipeline(w, compress)
	defer p.release()
	if err := h.writeParts(p, format, shard); err != nil {
		return err
	}
	return p.finish()
}

func (h *handler) writeParts(w io.Writer, format expfmt.Format, shard metrics.Shard) error {
	if shard.Index == 0 {
		if err := h.writeOwn(w, format); err != nil {
			return err
		}
	}
	for _, p := range h.parts {
		if !shard.Whole() {
			p = p.Shard(shard)
		}
		var err error
		if format.FormatType() == expfmt.TypeProtoDelim {
			err = p.WriteProtobuf(w)
		} else {
			err = p.WriteText(w)
		}
		if err != nil {
			return fmt.Errorf("write a part of the exposition: %w", err)
		}
	}
	return nil
}

// writeOwn writes the families of the registry.
func (h *handler) writeOwn(w io.Writer, format expfmt.Format) error {
	families, err := h.reg.Gather()
	var hidden map[string]bool
	if h.opts.Hidden != nil {
		hidden = h.opts.Hidden()
	}
	if err != nil {
		h.metrics.errors.WithLabelValues(causeGather).Inc()
		h.lacking.Log(context.Background(), h.opts.Log, slog.LevelWarn, "scrapes", 1, "part of the service's own families left out", "error", err)
	}
	buffered := bufio.NewWriterSize(w, registryBuffer)
	encoder := expfmt.NewEncoder(buffered, format)
	written := make(map[string]bool, len(families))
	for _, f := range families {
		written[f.GetName()] = true
		if hidden[f.GetName()] {
			continue
		}
		if err := encoder.Encode(f); err != nil {
			return fmt.Errorf("encode %s: %w", f.GetName(), err)
		}
	}
	if format.FormatType() == expfmt.TypeTextPlain {
		h.writeHeaders(buffered, func(name string) bool { return written[name] || hidden[name] })
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write the service's own families: %w", err)
	}
	return nil
}

// writeHeaders writes HELP and TYPE of the registry's families that have no series, unless
// skip is true. w keeps its errors until it is flushed.
func (h *handler) writeHeaders(w *bufio.Writer, skip func(name string) bool) {
	if h.opts.Headers == nil {
		return
	}
	for _, header := range h.opts.Headers() {
		if !skip(header.Name) {
			_, _ = w.Write(header.AppendText(nil))
		}
	}
}

func formatName(f expfmt.Format) string {
	if f.FormatType() == expfmt.TypeProtoDelim {
		return formatProtobuf
	}
	return formatText
}

// scrapeWriter writes a scrape, and counts its bytes. It keeps the first error: so a
// client that went away is distinguished from a part that failed.
type scrapeWriter struct {
	w    io.Writer
	conn *gatheringConn
	n    int64
	err  error
}

// Write implements io.Writer.
func (s *scrapeWriter) Write(p []byte) (int, error) {
	s.conn.startBuffering()
	n, err := s.w.Write(p)
	if flushErr := s.conn.flush(); err == nil {
		err = flushErr
	}
	s.n += int64(n)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}
