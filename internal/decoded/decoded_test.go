package decoded_test

import (
	"bytes"
	"runtime"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/internal/decoded"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func field(number protowire.Number, content []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), content)
}

// took returns how many bytes stay allocated once message is decoded.
func took(t *testing.T, encoded []byte, message proto.Message) int {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	require.NoError(t, proto.Unmarshal(encoded, message))
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(message)
	return int(after.HeapAlloc) - int(before.HeapAlloc)
}

// What is estimated is never much less than what is allocated, and of messages as
// they should be not much more.
func TestBytes(t *testing.T) {
	const size = 1 << 18
	names := func(n int) (b []byte) {
		for i := range n {
			entry := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), 4)
			entry = append(entry, byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/676%26), byte('a'+i/17576%26))
			b = append(b, field(13, entry)...)
		}
		return b
	}
	registrations := &agentstatsv1.RegisterAgentsRequest{}
	for range 1000 {
		registrations.Agents = append(registrations.Agents, &agentstatsv1.AgentRegistration{
			Id: make([]byte, 16), Name: "main", TokenSha256: make([]byte, 32),
			Workspace:    &agentstatsv1.Workspace{Id: make([]byte, 16), Name: "workspace", OwnerUsername: "somebody", Template: &agentstatsv1.Template{Name: "docker"}},
			MetadataKeys: []string{"cpu", "memory", "disk"},
		})
	}
	encodedRegistrations, err := proto.Marshal(registrations)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		message proto.Message
		encoded []byte
		factor  float64 // at most so much more than is allocated; 0: any
	}{
		"empty samples":      {&agentstatsv1.ConnectRequest{}, field(3, bytes.Repeat([]byte{0x62, 0}, size/2)), 2},
		"empty labels":       {&agentstatsv1.ConnectRequest{}, field(3, field(12, bytes.Repeat([]byte{0x22, 0}, size/2))), 2},
		"names":              {&agentstatsv1.ConnectRequest{}, field(3, names(20000)), 3},
		"one name":           {&agentstatsv1.ConnectRequest{}, field(3, bytes.Repeat(field(13, nil), size/2)), 0},
		"empty updates":      {&agentstatsv1.ConnectRequest{}, field(6, bytes.Repeat([]byte{0x0a, 0}, size/2)), 2},
		"empty regions":      {&agentstatsv1.ConnectRequest{}, field(7, bytes.Repeat([]byte{0x1a, 0}, size/2)), 2},
		"empty entries":      {&agentstatsv1.ConnectRequest{}, field(4, bytes.Repeat([]byte{0x0a, 0}, size/2)), 2},
		"unknown fields":     {&agentstatsv1.ConnectRequest{}, field(3, bytes.Repeat([]byte{0xf8, 0x07, 0x01}, size/3)), 3},
		"empty agents":       {&agentstatsv1.RegisterAgentsRequest{}, bytes.Repeat([]byte{0x0a, 0}, size/2), 2},
		"empty keys":         {&agentstatsv1.RegisterAgentsRequest{}, field(1, bytes.Repeat([]byte{0x42, 0}, size/2)), 4},
		"agents":             {&agentstatsv1.RegisterAgentsRequest{}, encodedRegistrations, 2},
		"empty ids":          {&agentstatsv1.GetMetadataRequest{}, bytes.Repeat([]byte{0x0a, 0}, size/2), 4},
		"empty metrics":      {&dto.MetricFamily{}, bytes.Repeat([]byte{0x22, 0}, size/2), 2},
		"packed varints":     {&dto.MetricFamily{}, field(4, field(7, field(10, make([]byte, size)))), 3},
		"unpacked varints":   {&dto.MetricFamily{}, field(4, field(7, bytes.Repeat([]byte{0x50, 1}, size/2))), 3},
		"numbers over again": {&dto.MetricFamily{}, bytes.Repeat([]byte{0x18, 1}, size/2), 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := decoded.New(c.message)
			estimated, err := e.Bytes(c.encoded, 1<<40)
			require.NoError(t, err)
			real := took(t, c.encoded, c.message)
			require.Greater(t, float64(estimated), 0.85*float64(real))
			if c.factor > 0 {
				require.Less(t, float64(estimated), c.factor*float64(real)+64<<10)
			}
			stopped, err := e.Bytes(c.encoded, 1000)
			require.NoError(t, err)
			require.Greater(t, stopped, 1000)
			require.LessOrEqual(t, stopped, 1000+17*size, "it counts on to the end of a packed field at most")
		})
	}
}

func FuzzBytes(f *testing.F) {
	f.Add([]byte{0x08, 1, 0x1a, 4, 0x62, 2, 0x0a, 0}, false)
	f.Add([]byte{0xa3, 0x06, 0xa4, 0x06}, true)
	f.Add([]byte{0xa3, 0x06}, true)
	e, pushed := decoded.New(&agentstatsv1.ConnectRequest{}), decoded.New(&dto.MetricFamily{})
	f.Fuzz(func(t *testing.T, b []byte, push bool) {
		e, m := e, proto.Message(&agentstatsv1.ConnectRequest{})
		if push {
			e, m = pushed, &dto.MetricFamily{}
		}
		if n, err := e.Bytes(b, 1<<30); err != nil {
			require.Error(t, proto.Unmarshal(b, m), "it decodes")
		} else {
			require.LessOrEqual(t, n, 300*(len(b)+1))
		}
	})
}
