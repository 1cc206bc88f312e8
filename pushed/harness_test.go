package pushed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/metrics"
	"github.com/coder/agentstatsd/pushed/internal/family"
	"github.com/coder/agentstatsd/pushed/internal/familytest"
)

// memory is a Store that can be made to fail.
type memory struct {
	mu   sync.Mutex
	rows map[agent.Instance]agent.PushRow
	err  error
	// script is asked before each call; if it returns lost, the call takes effect
	// and fails nevertheless.
	script func() (err, lost error)
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// loseNext has the next call take effect and fail.
func (m *memory) loseNext() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.script = func() (err, lost error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.script = nil
		return nil, errors.New("the connection is lost")
	}
}

// call makes one call.
func (m *memory) call(ctx context.Context, do func() error) error {
	m.mu.Lock()
	script, err := m.script, m.err
	m.mu.Unlock()
	var lost error
	if script != nil {
		var scripted error
		scripted, lost = script()
		err = errors.Join(err, scripted)
	}
	if err := errors.Join(err, ctx.Err()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(do(), lost)
}

func (m *memory) SavePush(ctx context.Context, row agent.PushRow) error {
	return m.FoldPushes(ctx, []agent.PushRow{row}, nil)
}

func (m *memory) FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error {
	return m.call(ctx, func() error {
		for _, row := range slices.Concat(rows, removed) {
			if m.rows[row.Instance].Version != row.Version {
				return fmt.Errorf("instance %x: %w", row.Instance, agent.ErrOutdated)
			}
		}
		if m.rows == nil {
			m.rows = make(map[agent.Instance]agent.PushRow)
		}
		for _, row := range removed {
			delete(m.rows, row.Instance)
		}
		for _, row := range rows {
			row.Data = bytes.Clone(row.Data)
			row.UpdatedAt = row.UpdatedAt.Round(0) // the clock of the machine is not stored
			row.Version++
			m.rows[row.Instance] = row
		}
		return nil
	})
}

func (m *memory) PushVersions(ctx context.Context) (versions map[agent.Instance]int64, _ error) {
	err := m.call(ctx, func() error {
		versions = make(map[agent.Instance]int64)
		for id, row := range m.rows {
			versions[id] = row.Version
		}
		return nil
	})
	return versions, err
}

func (m *memory) Pushes(ctx context.Context, ids []agent.Instance) (rows []agent.PushRow, _ error) {
	err := m.call(ctx, func() error {
		for id, row := range m.rows {
			if ids == nil || slices.Contains(ids, id) {
				rows = append(rows, row)
			}
		}
		return nil
	})
	return rows, err
}

// reserver keeps the names that were reserved last.
type reserver struct {
	mu    sync.Mutex
	names map[string]metrics.Type
}

func (c *reserver) ReserveFamilies(names map[string]metrics.Type) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.names = names
}

func (c *reserver) get() map[string]metrics.Type {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names
}

// lease is held by one replica.
type lease struct {
	mu     sync.Mutex
	holder int
	term   int64
}

// give makes holder lead in a new term.
func (l *lease) give(holder int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holder, l.term = holder, l.term+1
}

// of returns the lease as one replica sees it.
func (l *lease) of(replica int) Lease { return leaseOf{l, replica} }

type leaseOf struct {
	*lease
	replica int
}

func (l leaseOf) Term() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holder != l.replica {
		return 0
	}
	return l.term
}

// fataler is a *testing.T, *testing.B, or *rapid.T.
type fataler = familytest.T

func open(t fataler, store Store, opts Options) *Families {
	t.Helper()
	f, err := New(store, new(reserver), opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, f.Load(context.Background()))
	return f
}

func instanceID(n byte) agent.Instance { return agent.Instance{0: 0xc, 15: n} }

// What the tests share with those of family.
var (
	serialize = familytest.Serialize
	parseText = familytest.ParseText
)

// createdAt returns a time in nanoseconds since 1970; of 0 nil.
func createdAt(ns int64) *timestamppb.Timestamp {
	if ns == 0 {
		return nil
	}
	return timestamppb.New(time.Unix(0, ns))
}

// exemplarOf returns an exemplar at a time in nanoseconds since 1970.
func exemplarOf(value float64, at int64) *dto.Exemplar {
	return &dto.Exemplar{
		Label: []*dto.LabelPair{{Name: proto.String("trace"), Value: proto.String("t")}}, Value: &value, Timestamp: createdAt(at),
	}
}

// pushText pushes a snapshot that is written in the text format.
func pushText(t fataler, f *Families, now time.Time, id byte, snapshot int64, text string) []agent.PushRefusal {
	t.Helper()
	refused, err := f.Push(context.Background(), now, agent.Push{
		Replica: "coderd", Instance: instanceID(id), Interval: 10 * time.Second, Snapshot: snapshot,
		Families: serialize(t, parseText(t, text)...),
	})
	require.NoError(t, err)
	return refused
}

func text(t fataler, f *Families) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, f.WriteText(&b))
	return b.String()
}

func protobuf(t fataler, f *Families) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, f.WriteProtobuf(&b))
	return b.Bytes()
}

// families returns what is served, from the protobuf format.
func families(t fataler, f *Families) map[string]*dto.MetricFamily {
	t.Helper()
	out := make(map[string]*dto.MetricFamily)
	in := bytes.NewReader(protobuf(t, f))
	for {
		var family dto.MetricFamily
		if err := protodelim.UnmarshalFrom(in, &family); errors.Is(err, io.EOF) {
			return out
		} else {
			require.NoError(t, err)
		}
		out[family.GetName()] = &family
	}
}

// check parses both formats with the parsers of Prometheus and of the library,
// and returns the samples of the text by name and labels.
func check(t fataler, f *Families) map[string]float64 {
	t.Helper()
	plain := text(t, f)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	fromText, err := parser.TextToMetricFamilies(bytes.NewReader([]byte(plain)))
	require.NoError(t, err)
	served := families(t, f)
	require.Equal(t, len(served), len(fromText))

	samples := make(map[string]float64)
	p := textparse.NewPromParser([]byte(plain), labels.NewSymbolTable(), false)
	parse(t, p, samples)
	classic := make(map[string]float64)
	parse(t, textparse.NewProtobufParser(protobuf(t, f), true, true, false, false, labels.NewSymbolTable()), classic)
	requireSameSamples(t, samples, classic)
	parse(t, textparse.NewProtobufParser(protobuf(t, f), false, false, false, false, labels.NewSymbolTable()), make(map[string]float64))
	for scope, vec := range map[family.Scope]*prometheus.CounterVec{
		family.OfFamily: f.metrics.refused, family.OfSeries: f.metrics.refusedSeries, family.OfValues: f.metrics.refusedValues,
	} {
		require.Equal(t, len(family.Reasons[scope]), testutil.CollectAndCount(vec), "a reason is not in family.Reasons")
	}
	return samples
}

func requireSameSamples(t fataler, want, got map[string]float64) {
	t.Helper()
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	for name, v := range want {
		if v == v || got[name] == got[name] {
			require.Equal(t, v, got[name], name)
		}
	}
}

func parse(t fataler, p textparse.Parser, samples map[string]float64) {
	t.Helper()
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		var l labels.Labels
		switch entry {
		case textparse.EntrySeries:
			_, at, v := p.Series()
			require.Nil(t, at)
			p.Labels(&l)
			_, twice := samples[l.String()]
			require.False(t, twice, l.String())
			samples[l.String()] = v
		case textparse.EntryHistogram:
			_, _, whole, float := p.Histogram()
			if whole != nil {
				require.NoError(t, whole.Validate())
			} else {
				require.NoError(t, float.Validate())
			}
		}
	}
}

func newUnloaded(t fataler, store Store) (*Families, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	f, err := New(store, new(reserver), Options{}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return f, reg
}
