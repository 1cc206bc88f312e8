package peer

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coder/agentstatsd/bench/load"
)

// senders is how many agents report to a peer at the same time.
const senders = 8

// each calls f for every agent, for several at once.
func each(ctx context.Context, agents int, f func(ctx context.Context, n int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for first := range senders {
		group.Go(func() error {
			for n := first; n < agents; n += senders {
				if err := f(ctx, n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// The labels of an agent's identity are what a Pushgateway groups by.
const pushPath = "http://%s/metrics/job/agents/agent_name/%s/username/%s/workspace_name/%s"

// push pushes the series of each agent as one group.
func push(ctx context.Context, addr string, agents, round int) error {
	transport := &http.Transport{MaxIdleConnsPerHost: senders}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	return each(ctx, agents, func(ctx context.Context, n int) error {
		ident := load.Identity(n)
		url := fmt.Sprintf(pushPath, addr, ident.AgentName, ident.Username, ident.WorkspaceName)
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(text(n, round)))
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("push: %w", err)
		}
		defer func() { _ = resp.Body.Close() }()
		if answer, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
			return fmt.Errorf("push: %s: %.200s", resp.Status, answer)
		}
		return nil
	})
}

// text renders the series of an agent without the labels that it is grouped by.
func text(n, round int) []byte {
	var b []byte
	for s := range load.Each(n) {
		b = fmt.Appendf(b, "# TYPE %s %s\n%s", s.Name, kind(s), s.Name)
		open := byte('{')
		for i, label := range s.Labels {
			switch label {
			case "agent_name", "username", "workspace_name":
				continue
			}
			b = append(b, open)
			b = append(b, label...)
			b = append(b, '=')
			b = strconv.AppendQuote(b, s.Values[i])
			open = ','
		}
		if open == ',' {
			b = append(b, '}')
		}
		b = append(b, ' ')
		b = strconv.AppendFloat(b, s.Value+float64(round), 'g', -1, 64)
		b = append(b, '\n')
	}
	return b
}

func kind(s load.Series) string {
	if s.Counter {
		return "counter"
	}
	return "gauge"
}

// sendStatsd sends a line for each sample, with the labels as tags of DogStatsD.
// All are gauges, as a counter of StatsD is sent by what was added.
func sendStatsd(ctx context.Context, addr string, agents, round int) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("send lines: %w", err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	w := bufio.NewWriterSize(conn, 64<<10)
	var line []byte
	for n := range agents {
		for s := range load.Each(n) {
			line = append(line[:0], s.Name...)
			line = append(line, ':')
			line = strconv.AppendFloat(line, s.Value+float64(round), 'g', -1, 64)
			line = append(line, "|g"...)
			for i, label := range s.Labels {
				line = append(line, [...]string{"|#", ","}[min(i, 1)]...)
				line = append(line, label...)
				line = append(line, ':')
				line = append(line, s.Values[i]...)
			}
			line = append(line, '\n')
			if _, err := w.Write(line); err != nil {
				return fmt.Errorf("send lines: %w", err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("send lines: %w", err)
	}
	return nil
}

const exportMethod = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"

func dialOTLP(addr string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		return nil, fmt.Errorf("dial the collector: %w", err)
	}
	return conn, nil
}

// export sends the series of each agent in one call of OTLP.
func export(ctx context.Context, conn *grpc.ClientConn, agents, round int) error {
	return each(ctx, agents, func(ctx context.Context, n int) error {
		var answer mem.BufferSlice
		if err := conn.Invoke(ctx, exportMethod, otlp(n, round, time.Now()), &answer); err != nil {
			return fmt.Errorf("export: %w", err)
		}
		return nil
	})
}

// rawCodec passes encoded requests through, and forgets the answers.
type rawCodec struct{}

// Name implements encoding.CodecV2: on the wire it is protobuf.
func (rawCodec) Name() string { return "proto" }

// Marshal implements encoding.CodecV2.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	text, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("want encoded bytes, got %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(text)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }

// Numbers of fields of OTLP, on the way from the request to a value.
const (
	requestResourceMetrics = 1
	resourceScopeMetrics   = 2
	scopeMetrics           = 2
	metricName             = 1
	metricGauge            = 5
	gaugePoints            = 1
	pointTime              = 3
	pointDouble            = 4
	pointAttributes        = 7
	attributeKey           = 1
	attributeValue         = 2
	valueString            = 1
)

// otlp encodes the series of an agent as one request, all as gauges: sums are
// renamed on the way to Prometheus.
func otlp(n, round int, now time.Time) []byte {
	var metrics []byte
	for s := range load.Each(n) {
		var point []byte
		point = protowire.AppendTag(point, pointTime, protowire.Fixed64Type)
		point = protowire.AppendFixed64(point, uint64(now.UnixNano()))
		point = protowire.AppendTag(point, pointDouble, protowire.Fixed64Type)
		point = protowire.AppendFixed64(point, math.Float64bits(s.Value+float64(round)))
		for i, label := range s.Labels {
			attribute := field(nil, attributeKey, []byte(label))
			attribute = field(attribute, attributeValue, field(nil, valueString, []byte(s.Values[i])))
			point = field(point, pointAttributes, attribute)
		}
		metric := field(nil, metricName, []byte(s.Name))
		metric = field(metric, metricGauge, field(nil, gaugePoints, point))
		metrics = field(metrics, scopeMetrics, metric)
	}
	return field(nil, requestResourceMetrics, field(nil, resourceScopeMetrics, metrics))
}

func field(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}
