package drpctap

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"storj.io/drpc"
)

func field(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}

func varint(b []byte, number protowire.Number, value int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), uint64(value))
}

// updateSelf is a CoordinateRequest with a node.
func updateSelf(id int64, preferred int64, latencies ...latency) []byte {
	node := varint(nil, 1, id)
	node = field(node, 2, []byte("a key that is not read"))
	node = varint(node, 5, preferred)
	for _, l := range latencies {
		entry := field(nil, 1, []byte(l.key))
		entry = protowire.AppendFixed64(protowire.AppendTag(entry, 2, protowire.Fixed64Type), math.Float64bits(l.seconds))
		node = field(node, 6, entry)
	}
	return field(nil, 1, field(nil, 1, node))
}

type latency struct {
	key     string
	seconds float64
}

// derpMap has the names of regions by their ids.
func derpMap(names map[int64]string) []byte {
	var b []byte
	for id, name := range names {
		region := varint(nil, 1, id)
		region = field(region, 3, []byte("code"))
		region = field(region, 4, []byte(name))
		b = field(b, 2, field(varint(nil, 1, id), 2, region))
	}
	return b
}

var (
	disconnect = field(nil, 2, nil)
	addTunnel  = field(nil, 3, field(nil, 1, []byte("an id")))
)

// What an agent says of its node is relayed once coderd's handler has taken it in, if it
// is new.
func TestCoordinate(t *testing.T) {
	for name, test := range map[string]struct {
		requests [][]byte
		refused  int // the request that coderd refuses, from 1; 0: none
		want     []string
		log      string
	}{
		"node": {
			requests: [][]byte{updateSelf(-5, 2, latency{"2-v4", 0.02}, latency{"2-v6", 0.01}, latency{"1-v4", 0.5})},
			want:     []string{`node fffffffffffffffb prefers 2 1 "Unnamed" 500ms 2 "" 10ms`},
		},
		"latencies that make no sense": {
			requests: [][]byte{updateSelf(1, 0, latency{"x", 1}, latency{"-1-v4", 1}, latency{"3-v4", -1}, latency{"4-v4", math.NaN()}, latency{"5-v4", math.Inf(1)}, latency{"6-v4", 86401})},
			want:     []string{"node 1 prefers 0"},
		},
		"a region that is none": {requests: [][]byte{updateSelf(1, -1)}, want: []string{"node 1 prefers 0"}},

		"the same again":  {requests: [][]byte{updateSelf(1, 2), updateSelf(1, 2), updateSelf(1, 3)}, want: []string{"node 1 prefers 2", "node 1 prefers 3"}},
		"disconnect":      {requests: [][]byte{updateSelf(1, 2), disconnect, updateSelf(1, 2)}, want: []string{"node 1 prefers 2", "node 0 prefers 0", "node 1 prefers 2"}},
		"something else":  {requests: [][]byte{addTunnel, updateSelf(1, 2), addTunnel}, want: []string{"node 1 prefers 2"}},
		"refused":         {requests: [][]byte{updateSelf(1, 2), updateSelf(2, 2)}, refused: 2, want: []string{"node 1 prefers 2"}},
		"no node":         {requests: [][]byte{field(nil, 1, nil), nil}},
		"not our bytes":   {requests: [][]byte{{0xff}}, log: "decode the message"},
		"not our node":    {requests: [][]byte{field(nil, 1, field(nil, 1, []byte{0xff}))}, log: "decode the message"},
		"unencodable":     {requests: [][]byte{[]byte("unencodable")}, log: "encode the request"},
		"after the error": {requests: [][]byte{{0xff}, updateSelf(1, 2)}, want: []string{"node 1 prefers 2"}, log: "decode the message"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			tap := New(nil, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
			tap.setRegionNames(map[int64]string{1: "Unnamed"})
			agent := &recorder{}
			handled := 0
			server := &api{handle: func(*raw) (*raw, error) {
				if handled++; handled == test.refused {
					return nil, errors.New("refused by coderd")
				}
				return &raw{}, nil
			}}
			conn := dial(t, server, func(mux drpc.Mux) error { return mux.Register(server, tap.Wrap(apiDescription{}, agent)) })
			stream, err := conn.NewStream(t.Context(), coordinate, encoding{})
			require.NoError(t, err)
			for i, r := range test.requests {
				if string(r) == "unencodable" {
					// It can be sent, but not encoded again.
					require.NoError(t, stream.MsgSend(&raw{r}, sending{}))
				} else {
					require.NoError(t, stream.MsgSend(&raw{r}, encoding{}))
				}
				if i+1 == test.refused {
					require.ErrorContains(t, stream.MsgRecv(&raw{}, encoding{}), "refused by coderd")
				} else {
					require.NoError(t, stream.MsgRecv(&raw{}, encoding{}))
				}
			}
			if test.refused == 0 {
				require.NoError(t, stream.CloseSend())
				require.Error(t, stream.MsgRecv(&raw{}, encoding{}), "the handler has returned")
			}
			require.Equal(t, test.want, agent.take())
			if test.log == "" {
				require.Empty(t, log.String())
			}
			require.Contains(t, log.String(), test.log)
		})
	}
}

// sending encodes whatever there is.
type sending struct{ encoding }

func (sending) Marshal(m drpc.Message) ([]byte, error) { return m.(*raw).bytes, nil }

// The names of regions come with the map that coderd sends the agent, before or after its
// node. All agents have the newest.
func TestRegionsHaveTheNamesOfTheDERPMap(t *testing.T) {
	var log bytes.Buffer
	tap := New(nil, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	agent := &recorder{}
	server := &api{handle: func(*raw) (*raw, error) { return &raw{}, nil }}
	desc := tap.Wrap(apiDescription{}, agent)
	say := func(request []byte) {
		t.Helper()
		conn := dial(t, server, func(mux drpc.Mux) error { return mux.Register(server, desc) })
		stream, err := conn.NewStream(t.Context(), coordinate, encoding{})
		require.NoError(t, err)
		require.NoError(t, stream.MsgSend(&raw{request}, encoding{}))
		require.NoError(t, stream.MsgRecv(&raw{}, encoding{}))
		require.NoError(t, stream.CloseSend())
		require.Error(t, stream.MsgRecv(&raw{}, encoding{}))
	}
	getMap := func(names map[int64]string) {
		t.Helper()
		conn := dial(t, server, func(mux drpc.Mux) error { return mux.Register(server, desc) })
		stream, err := conn.NewStream(t.Context(), streamDERPMaps, encoding{})
		require.NoError(t, err)
		require.NoError(t, stream.MsgSend(&raw{derpMap(names)}, encoding{}))
		require.NoError(t, stream.CloseSend())
		for range 2 {
			require.NoError(t, stream.MsgRecv(&raw{}, encoding{}))
		}
		require.NoError(t, stream.Close())
	}
	getMap(map[int64]string{1: "Frankfurt"})
	require.Empty(t, agent.take(), "there is no node")
	node := updateSelf(7, 1, latency{"1-v4", 0.25}, latency{"2-v4", 0.5})
	say(node)
	require.Equal(t, []string{`node 7 prefers 1 1 "Frankfurt" 250ms 2 "" 500ms`}, agent.take())
	getMap(map[int64]string{1: "Frankfurt", 2: "Sydney"})
	require.Equal(t, []string{`node 7 prefers 1 1 "Frankfurt" 250ms 2 "Sydney" 500ms`}, agent.take())
	getMap(map[int64]string{1: "Frankfurt", 2: "Sydney"})
	require.Empty(t, agent.take())
	other := &recorder{}
	require.NoError(t, tap.Network(other).Coordinate(node))
	require.Equal(t, []string{`node 7 prefers 1 1 "Frankfurt" 250ms 2 "Sydney" 500ms`}, other.take())
	require.Empty(t, log.String())
}

// Of an agent's network no more is relayed than the service takes.
func TestNetworkIsBounded(t *testing.T) {
	agent := &recorder{}
	n := New(nil, Options{}).Network(agent)
	require.NoError(t, n.SetRegions(map[int64]string{1: strings.Repeat("x", 200), 2: "a\xffb"}))
	require.Empty(t, agent.take(), "there is no node")
	var latencies []latency
	for id := range 200 {
		latencies = append(latencies, latency{fmt.Sprintf("%d-v4", id+1), 1})
	}
	latencies = append(latencies, latency{"1-v6", 0.5}, latency{"200-v6", 0.5})
	require.NoError(t, n.Coordinate(updateSelf(5, 1, latencies...)))
	said := agent.take()
	require.Len(t, said, 1)
	require.Contains(t, said[0], `prefers 1 1 "`+strings.Repeat("x", 128)+`" 500ms 2 "ab" 1s 3 "" 1s `)
	require.Equal(t, 128, strings.Count(said[0], `" `))
	require.NotContains(t, said[0], "129 ")
}
