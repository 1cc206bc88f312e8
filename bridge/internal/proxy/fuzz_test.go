package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge/internal/copies"
	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/codertest"
)

// lines is a handler that keeps what it gets as codertest.Parse says it.
type lines struct{ got []string }

func (l *lines) Manifest(m *decode.Manifest) {
	line := fmt.Sprintf("manifest %s %s %q %q %q", m.AgentID, m.WorkspaceID, m.AgentName, m.OwnerUsername, m.WorkspaceName)
	for _, a := range m.Apps {
		line += fmt.Sprintf(" %s=%d", a.ID, a.Health)
	}
	l.got = append(l.got, line)
}

func (l *lines) Call(call string, request []byte) {
	l.got = append(l.got, fmt.Sprintf("%s %x", call, request))
}

func (l *lines) Regions(names map[int64]string) {
	l.got = append(l.got, fmt.Sprintf("regions %v", names))
}

// update has TestRecorded write what is recorded.
var update = flag.Bool("update", false, "record testdata/connection.json again")

const recording = "testdata/connection.json"

// recorded is a short connection by the real libraries. It is in a file, as masks and the
// order of goroutines are not the same each time.
var recorded = sync.OnceValue(func() (parts []codertest.Part) {
	text, err := os.ReadFile(recording)
	if err == nil {
		err = json.Unmarshal(text, &parts)
	}
	if err != nil {
		panic(err)
	}
	return parts
})

// A connection that is recorded now says what the recording does.
func TestRecorded(t *testing.T) {
	parts := record()
	if *update {
		text, err := json.Marshal(parts)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(recording, text, 0o644))
	}
	want, err := codertest.Parse(parts)
	require.NoError(t, err)
	require.Len(t, want, 7)
	got, err := codertest.Parse(recorded())
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func record() []codertest.Part {
	id := uuid.UUID{1}
	coderd := &codertest.RPC{}
	coderd.Add(codertest.Agent{ID: id, Token: "token", Manifest: codertest.Manifest{
		AgentID: id, AgentName: "main", Apps: []codertest.ManifestApp{{ID: id, Health: 3}}, Regions: map[int64]string{1: "Helsinki"},
	}.Encode()})
	server := httptest.NewServer(coderd)
	defer server.Close()
	recorder := &codertest.Recorder{}
	ctx := context.Background()
	s, err := codertest.Dial(ctx, server.Listener.Addr().String(), "token", codertest.DialOptions{Wrap: recorder.Wrap})
	if err != nil {
		panic(err)
	}
	for _, call := range []struct{ name, request string }{
		{codertest.UpdateLifecycle, "\x0a\x02\x08\x02"}, {codertest.GetManifest, ""}, {codertest.UpdateStats, ""},
		{codertest.UpdateStats, "\x0a\x02\x10\x05"}, {codertest.BatchUpdateMetadata, "\x12\x05\x0a\x03cpu"}, {codertest.BatchCreateLogs, "logs"},
	} {
		if _, err := s.Call(ctx, call.name, []byte(call.request)); err != nil {
			panic(err)
		}
	}
	stream, err := s.Stream(ctx, codertest.Coordinate)
	if err != nil {
		panic(err)
	}
	node := codertest.Node{ID: 5, Preferred: 1, Latencies: map[string]float64{"1-v4": 0.25}}
	if err := stream.MsgSend(&codertest.Message{Bytes: node.UpdateSelf()}, codertest.Encoding{}); err != nil {
		panic(err)
	}
	_ = stream.Close()
	_ = s.Close()
	return recorder.Parts()
}

// mutated changes parts as b says: each four bytes are what to do, where and with what. Of b
// there are 400 bytes at most.
func mutated(parts []codertest.Part, b []byte) (all []codertest.Part) {
	for _, p := range parts {
		all = append(all, codertest.Part{FromAgent: p.FromAgent, Bytes: bytes.Clone(p.Bytes)})
	}
	for b = b[:min(len(b), 400)]; len(b) >= 4 && len(all) > 0; b = b[4:] {
		place := int(binary.BigEndian.Uint16(b[1:]))
		i := place % len(all)
		p := &all[i]
		at := place / len(all) % max(1, len(p.Bytes))
		switch b[0] % 8 {
		case 0, 1, 2: // another byte
			p.Bytes[at] ^= b[3]
		case 3: // one byte more
			p.Bytes = append(p.Bytes[:at:at], append([]byte{b[3]}, p.Bytes[at:]...)...)
		case 4: // fewer bytes
			p.Bytes = append(p.Bytes[:at:at], p.Bytes[min(len(p.Bytes), at+1+int(b[3])):]...)
		case 5: // two parts
			rest := codertest.Part{FromAgent: p.FromAgent, Bytes: bytes.Clone(p.Bytes[at:])}
			p.Bytes = p.Bytes[:at]
			all = append(all[:i+1], append([]codertest.Part{rest}, all[i+1:]...)...)
		case 6: // it comes later
			j := (i + 1) % len(all)
			all[i], all[j] = all[j], all[i]
		case 7: // it comes twice
			all = append(all[:i+1], append([]codertest.Part{{FromAgent: p.FromAgent, Bytes: bytes.Clone(p.Bytes)}}, all[i+1:]...)...)
		}
		kept := all[:0]
		for _, p := range all {
			if len(p.Bytes) > 0 {
				kept = append(kept, p)
			}
		}
		all = kept
	}
	return all
}

// receiver is coderd's connection, or the agent's. It has what was written.
type receiver struct {
	io.Reader
	bytes.Buffer
}

func (r *receiver) Read(b []byte) (int, error) { return r.Reader.Read(b) }
func (*receiver) Close() error                 { return nil }

// FuzzBridge has whatever bytes pass. All of them arrive as they were sent. What is decoded
// is what a parser of the whole sees, or, if decoding ends before, the beginning of that.
func FuzzBridge(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte{0, 0, 40, 1})
	f.Add([]byte{5, 0, 30, 0, 5, 1, 30, 0, 4, 0, 9, 1})
	f.Add([]byte{6, 0, 9, 0, 7, 0, 20, 0})
	f.Fuzz(passes)
}

// passes checks one input of FuzzBridge.
func passes(t *testing.T, b []byte) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	parts := mutated(recorded(), b)
	m, err := newMetrics(prometheus.NewRegistry())
	require.NoError(t, err)
	budget := decode.NewBudget(64 << 20)
	decoding := copies.New(budget)
	got := &lines{}
	connection, err := decode.NewConnection(got, budget)
	require.NoError(t, err)
	var failed error
	p := decoding.Open(connection, func(err error) { failed = err })
	var want, arrived [2]bytes.Buffer
	for _, part := range parts {
		side := 0
		to := &receiver{Reader: bytes.NewReader(nil)}
		if part.FromAgent {
			side = 1
		}
		want[side].Write(part.Bytes)
		if part.FromAgent {
			_, err = (&tunnel{ReadWriteCloser: to, copy: p, metrics: m}).ReadFrom(bytes.NewReader(part.Bytes))
			arrived[side].Write(to.Bytes())
		} else {
			to.Reader = bytes.NewReader(part.Bytes)
			_, err = (&tunnel{ReadWriteCloser: to, copy: p, metrics: m}).WriteTo(&arrived[side])
		}
		require.NoError(t, err)
		require.NoError(t, decoding.Run(ended))
	}
	p.Close()
	for budget.Used() > 0 { // a round may have been before the end
		require.NoError(t, decoding.Run(ended))
	}
	for side := range want {
		require.True(t, bytes.Equal(want[side].Bytes(), arrived[side].Bytes()))
	}
	whole, err := codertest.Parse(parts)
	if failed == nil {
		require.NoError(t, err, "decoding went on")
		require.Equal(t, whole, got.got)
	}
	require.NotContains(t, fmt.Sprint(failed), "panic")
	require.LessOrEqual(t, len(got.got), len(whole), fmt.Sprint(failed))
	require.Equal(t, strings.Join(whole[:len(got.got)], "\n"), strings.Join(got.got, "\n"))
}
