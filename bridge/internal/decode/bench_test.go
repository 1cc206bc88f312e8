package decode_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/bridge/internal/decode"
	"github.com/coder/agentstatsd/internal/codertest"
)

// ignored is a Handler that does nothing.
type ignored struct{}

func (ignored) Manifest(*decode.Manifest) {}
func (ignored) Call(string, []byte)       {}
func (ignored) Regions(map[int64]string)  {}

// BenchmarkCall decodes a call: what an agent sends of a report of 85 samples, or of as many
// bytes of logs, and the answer.
func BenchmarkCall(b *testing.B) {
	for _, name := range []string{codertest.UpdateStats, codertest.BatchCreateLogs} {
		b.Run(name[len("/coder.agent.v2.Agent/"):], func(b *testing.B) {
			budget := decode.NewBudget(1 << 30)
			c, err := decode.NewConnection(ignored{}, budget)
			require.NoError(b, err)
			s := &script{}
			s.manifest()
			for _, p := range s.parts {
				require.NoError(b, c.Read(p.FromAgent, p.Bytes))
			}
			request := statsRequest(b, 85)
			id := uint32(3)
			var parts []codertest.Part
			size := 0
			again := &script{}
			again.call(3, name, request, nil)
			for _, p := range again.parts {
				size += len(p.Bytes)
				parts = append(parts, codertest.Part{FromAgent: p.FromAgent, Bytes: make([]byte, len(p.Bytes))})
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				fresh := &script{}
				fresh.call(id, name, request, nil)
				id += 2
				for i, p := range fresh.parts {
					copy(parts[i].Bytes, p.Bytes)
				}
				b.StartTimer()
				for _, p := range parts {
					if err := c.Read(p.FromAgent, p.Bytes); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
