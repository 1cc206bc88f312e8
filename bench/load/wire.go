package load

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// Numbers of fields on the wire.
const (
	requestSequence = 1
	requestStats    = 3
	statsMetrics    = 12
	metricValue     = 3
	// unknownField is in no message of the contract.
	unknownField = 1000
)

// Template is an encoded report whose values are replaced as it is copied, so
// that a sender costs next to nothing.
type Template struct {
	stats []byte
	// values are the offsets of the samples' values, which are 8 bytes each.
	values []int
	base   float64
}

// NewTemplate encodes the report of agent n with that many samples. If unknown is true,
// it begins with a field that is not in the contract. So the service decodes it by the
// generated code.
func NewTemplate(n, samples int, unknown bool) (*Template, error) {
	r := NewReport(n, samples)
	stats := &agentstatsv1.Stats{
		RxBytes:                   r.stats.RxBytes,
		TxBytes:                   r.stats.TxBytes,
		ConnectionCount:           r.stats.ConnectionCount,
		ConnectionMedianLatencyMs: r.stats.MedianLatencyMS,
		SessionCountVscode:        1,
		SessionCountSsh:           2,
	}
	for _, s := range r.samples {
		m := &agentstatsv1.Stats_Metric{Name: s.Name, Type: agentstatsv1.Stats_Metric_TYPE_GAUGE, Value: 1}
		if s.Type == agent.Counter {
			m.Type = agentstatsv1.Stats_Metric_TYPE_COUNTER
		}
		for _, l := range s.Labels {
			m.Labels = append(m.Labels, &agentstatsv1.Stats_Metric_Label{Name: l.Name, Value: l.Value})
		}
		stats.Metrics = append(stats.Metrics, m)
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(stats)
	if err != nil {
		return nil, fmt.Errorf("encode a report: %w", err)
	}
	if unknown {
		encoded = append(strange(), encoded...)
	}
	t := &Template{stats: encoded, base: float64(n)}
	if err := t.findValues(); err != nil {
		return nil, err
	}
	if len(t.values) != samples {
		return nil, fmt.Errorf("encode a report: want %d values, found %d", samples, len(t.values))
	}
	return t, nil
}

func strange() []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, unknownField, protowire.VarintType), 1)
}

// findValues notes where the values of the samples stand.
func (t *Template) findValues() error {
	for at := 0; at < len(t.stats); {
		number, _, n := protowire.ConsumeField(t.stats[at:])
		if n < 0 {
			return fmt.Errorf("walk a report: %w", protowire.ParseError(n))
		}
		if number == statsMetrics {
			metric, _ := protowire.ConsumeBytes(t.stats[at+protowire.SizeTag(statsMetrics):])
			start := at + n - len(metric)
			if err := t.findValue(start, metric); err != nil {
				return err
			}
		}
		at += n
	}
	return nil
}

func (t *Template) findValue(start int, metric []byte) error {
	for at := 0; at < len(metric); {
		number, _, n := protowire.ConsumeField(metric[at:])
		if n < 0 {
			return fmt.Errorf("walk a sample: %w", protowire.ParseError(n))
		}
		if number == metricValue {
			t.values = append(t.values, start+at+protowire.SizeTag(metricValue))
		}
		at += n
	}
	return nil
}

// Size is the most bytes that Append appends.
func (t *Template) Size() int { return len(t.stats) + 32 }

// Append appends a request of a stream to dst, with a sequence and the values of
// a round.
func (t *Template) Append(dst []byte, sequence int64, round int) []byte {
	dst = protowire.AppendTag(dst, requestSequence, protowire.VarintType)
	dst = protowire.AppendVarint(dst, uint64(sequence))
	dst = protowire.AppendTag(dst, requestStats, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(t.stats)))
	start := len(dst)
	dst = append(dst, t.stats...)
	for i, at := range t.values {
		value := t.base + float64(i+round)
		binary.LittleEndian.PutUint64(dst[start+at:], math.Float64bits(value))
	}
	return dst
}

// Hello encodes the first request of a stream of agent n.
func Hello(n int, session int64) ([]byte, error) {
	id := ID(n)
	req := &agentstatsv1.ConnectRequest{Hello: &agentstatsv1.Hello{
		InstanceId:      id[:],
		ProtocolVersion: 1,
		Session:         session,
	}}
	text, err := proto.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode a hello: %w", err)
	}
	return text, nil
}

// Token of agent n.
func Token(n int) string { return fmt.Sprintf("token-of-the-simulated-agent-%08d", n) }

// Registration of agent n, with its own workspace, owner and token.
func Registration(n int) *agentstatsv1.AgentRegistration {
	made := timestamppb.New(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	related := func(kind byte) []byte {
		id := ID(n)
		id[1] = kind
		return id[:]
	}
	id, ident, token := ID(n), Identity(n), sha256.Sum256([]byte(Token(n)))
	return &agentstatsv1.AgentRegistration{
		Id:          id[:],
		Name:        ident.AgentName,
		CreatedAt:   made,
		TokenSha256: token[:],
		Workspace: &agentstatsv1.Workspace{
			Id:            related(1),
			Name:          ident.WorkspaceName,
			OwnerId:       related(2),
			OwnerUsername: ident.Username,
			Template:      &agentstatsv1.Template{Id: bytesOf(ID(1 << 40)), Name: ident.TemplateName, Version: "v1"},
			Build: &agentstatsv1.Build{
				Id:         related(3),
				CreatedAt:  made,
				Transition: agentstatsv1.Build_TRANSITION_START,
			},
		},
	}
}

func bytesOf(id agent.ID) []byte { return id[:] }
