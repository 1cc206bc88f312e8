package decode_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/codertest"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// lines is a Handler that keeps what it gets as codertest.Parse says it.
type lines struct{ got []string }

func (l *lines) add(format string, args ...any) { l.got = append(l.got, fmt.Sprintf(format, args...)) }

func (l *lines) Manifest(m *decode.Manifest) {
	var apps strings.Builder
	for _, a := range m.Apps {
		fmt.Fprintf(&apps, " %s=%d", a.ID, a.Health)
	}
	l.add("manifest %s %s %q %q %q%s", m.AgentID, m.WorkspaceID, m.AgentName, m.OwnerUsername, m.WorkspaceName, apps.String())
}

func (l *lines) Call(call string, request []byte) { l.add("%s %x", call, request) }

func (l *lines) Regions(names map[int64]string) { l.add("regions %v", names) }

// read decodes parts, each cut as cut says. All memory must be given back.
func read(t testing.TB, parts []codertest.Part, cut func(left int) int) ([]string, error) {
	t.Helper()
	budget := decode.NewBudget(64 << 20)
	got := &lines{}
	c, err := decode.NewConnection(got, budget)
	require.NoError(t, err)
	for _, p := range parts {
		for b := bytes.Clone(p.Bytes); len(b) > 0 && err == nil; {
			n := cut(len(b))
			err = c.Read(p.FromAgent, b[:n])
			b = b[n:]
		}
	}
	c.Close()
	c.Close()
	require.Zero(t, budget.Used())
	return got.got, err
}

func whole(left int) int { return left }

func single(int) int { return 1 }

func random(seed uint64) func(int) int {
	r := rand.New(rand.NewPCG(seed, 0))
	return func(left int) int { return 1 + r.IntN(min(left, 1+r.IntN(64))) }
}

var (
	agentID = uuid.MustParse("11111111-2222-3333-4444-555555555555")
	appID   = uuid.MustParse("aaaaaaaa-2222-3333-4444-555555555555")
)

const secret = "marked-secret"

func manifest() codertest.Manifest {
	return codertest.Manifest{
		AgentID: agentID, WorkspaceID: uuid.UUID{7}, AgentName: "main", OwnerUsername: "alice", WorkspaceName: "dev",
		Apps:    []codertest.ManifestApp{{ID: appID, Slug: "code", Health: 3}},
		Regions: map[int64]string{1: "Helsinki"}, Secret: secret,
	}
}

// statsRequest is a report of n samples.
func statsRequest(t testing.TB, n int) []byte {
	stats := &agentstatsv1.Stats{RxBytes: 5, ConnectionCount: 2}
	for i := range n {
		stats.Metrics = append(stats.Metrics, &agentstatsv1.Stats_Metric{
			Name: fmt.Sprintf("agent_metric_%d", i), Type: agentstatsv1.Stats_Metric_TYPE_COUNTER, Value: float64(i),
			Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "kind", Value: "a"}},
		})
	}
	encoded, err := proto.Marshal(stats)
	require.NoError(t, err)
	return append(appendLength([]byte{1<<3 | 2}, len(encoded)), encoded...)
}

func appendLength(b []byte, n int) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// start starts a coderd with the agent.
func start(t testing.TB, coderd *codertest.RPC) (addr string) {
	coderd.Add(codertest.Agent{ID: agentID, Token: "token", Manifest: manifest().Encode()})
	server := httptest.NewServer(coderd)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// session dials a coderd, and records the connection.
func session(t testing.TB, addr string) (*codertest.Session, *codertest.Recorder) {
	recorder := &codertest.Recorder{}
	s, err := codertest.Dial(t.Context(), addr, "token", codertest.DialOptions{Wrap: recorder.Wrap})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s, recorder
}

func call(t testing.TB, s *codertest.Session, name string, request []byte) {
	_, err := s.Call(t.Context(), name, request)
	require.NoError(t, err)
}

// await has the peer see a message of a stream, whose answer nobody waits for.
func await(t testing.TB, what string, happened func() bool) {
	for deadline := time.Now().Add(10 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), what)
	}
}

var node = codertest.Node{ID: 0x1234, Preferred: 1, Latencies: map[string]float64{"1-v4": 0.02}}

// conversation returns what a usual connection carries.
func conversation(t testing.TB) []codertest.Part {
	coderd := &codertest.RPC{DERPMaps: [][]byte{codertest.DERPMap(map[int64]string{1: "Helsinki"}), codertest.DERPMap(map[int64]string{1: "Turku"})}}
	coderd.Refuse = func(c codertest.Call) error {
		if bytes.Contains(c.Request, []byte("refused")) {
			return errors.New("refused: " + secret)
		}
		return nil
	}
	s, recorder := session(t, start(t, coderd))
	call(t, s, codertest.UpdateLifecycle, []byte("\x0a\x02\x08\x02")) // before the manifest
	call(t, s, codertest.GetManifest, nil)
	call(t, s, codertest.UpdateStats, nil) // asks for the interval
	maps, err := s.Stream(t.Context(), codertest.StreamDERPMaps)
	require.NoError(t, err)
	require.NoError(t, maps.MsgSend(&codertest.Message{}, codertest.Encoding{}))
	for range 2 {
		require.NoError(t, maps.MsgRecv(&codertest.Message{}, codertest.Encoding{}))
	}
	network, err := s.Stream(t.Context(), codertest.Coordinate)
	require.NoError(t, err)
	require.NoError(t, network.MsgSend(&codertest.Message{Bytes: node.UpdateSelf()}, codertest.Encoding{}))
	await(t, "coordination", func() bool { return len(coderd.Accepted()) == 4 })
	call(t, s, codertest.UpdateStats, statsRequest(t, 85))
	call(t, s, codertest.BatchUpdateMetadata, []byte("\x12\x05\x0a\x03cpu"))
	call(t, s, codertest.BatchCreateLogs, []byte(secret))
	_, err = s.Call(t.Context(), codertest.BatchUpdateMetadata, []byte("\x12\x09\x0a\x07refused"))
	require.Error(t, err)
	call(t, s, codertest.BatchUpdateAppHealths, append([]byte("\x0a\x14\x0a\x10"), append(appID[:], "\x10\x03"...)...))
	both := make(chan error, 2)
	for _, name := range []string{codertest.UpdateStats, codertest.BatchUpdateMetadata} {
		go func() {
			_, err := s.Call(t.Context(), name, bytes.Repeat([]byte("\x1a\x01x"), 10_000))
			both <- err
		}()
	}
	require.NoError(t, <-both)
	require.NoError(t, <-both)
	call(t, s, codertest.UpdateStats, statsRequest(t, 3000)) // over several frames of dRPC
	for _, stream := range []drpc.Stream{maps, network} {
		_ = stream.Close()
	}
	require.NoError(t, s.Close())
	return recorder.Parts()
}

// A connection by the real libraries is decoded as one that is parsed as a whole, however
// it is cut.
func TestConversation(t *testing.T) {
	parts := conversation(t)
	want, err := codertest.Parse(parts)
	require.NoError(t, err)
	require.Len(t, want, 13, strings.Join(want, "\n"))
	require.Contains(t, want[0], `manifest 11111111-2222-3333-4444-555555555555 07000000-0000-0000-0000-000000000000 "main" "alice" "dev" aaaaaaaa-2222-3333-4444-555555555555=3`)
	require.Contains(t, want, fmt.Sprintf("%s %x", codertest.Coordinate, node.UpdateSelf()))
	require.NotContains(t, strings.Join(want, "\n"), fmt.Sprintf("%x", "refused"))
	cuts := map[string]func(int) int{"whole": whole, "single": single}
	for seed := range uint64(20) {
		cuts[fmt.Sprint("random ", seed)] = random(seed)
	}
	for name, cut := range cuts {
		got, err := read(t, parts, cut)
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
		require.NotContains(t, strings.Join(got, "\n"), secret)
	}
}

// Of what is nobody's business nothing is kept, at any moment.
func TestSecretsAreNotKept(t *testing.T) {
	parts := conversation(t)
	for _, cut := range []func(int) int{whole, single, random(1)} {
		c, err := decode.NewConnection(&lines{}, decode.NewBudget(64<<20))
		require.NoError(t, err)
		read := 0
		for _, p := range parts {
			for b := bytes.Clone(p.Bytes); len(b) > 0; {
				n := cut(len(b))
				require.NoError(t, c.Read(p.FromAgent, b[:n]))
				b = b[n:]
				if read += n; read < 8000 || len(b)%4096 == 0 { // the manifest is early
					require.False(t, reaches(reflect.ValueOf(c), secret[:8], map[uintptr]bool{}), "%v", p)
				}
			}
		}
		c.Close()
	}
	kept := &struct{ b [2][]byte }{[2][]byte{nil, []byte("x" + secret)[:1]}}
	require.True(t, reaches(reflect.ValueOf(kept), secret, map[uintptr]bool{}), "what it is looked for by")
}

// reaches reports whether a text is in the memory of v, also where it is not used any more.
func reaches(v reflect.Value, text string, seen map[uintptr]bool) bool {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return false
		}
		seen[v.Pointer()] = true
		return reaches(v.Elem(), text, seen)
	case reflect.Interface:
		return !v.IsNil() && reaches(v.Elem(), text, seen)
	case reflect.Struct:
		for i := range v.NumField() {
			if reaches(v.Field(i), text, seen) {
				return true
			}
		}
	case reflect.String:
		return strings.Contains(v.String(), text)
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice {
			v = v.Slice3(0, v.Cap(), v.Cap())
		}
		if v.Type().Elem().Kind() == reflect.Uint8 {
			var b strings.Builder
			for i := range v.Len() {
				b.WriteByte(byte(v.Index(i).Uint()))
			}
			return strings.Contains(b.String(), text)
		}
		for i := range v.Len() {
			if reaches(v.Index(i), text, seen) {
				return true
			}
		}
	case reflect.Map:
		for m := v.MapRange(); m.Next(); {
			if reaches(m.Key(), text, seen) || reaches(m.Value(), text, seen) {
				return true
			}
		}
	}
	return false
}
