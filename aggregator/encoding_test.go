package aggregator

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// undecodable is a report of which no sample is to be decoded.
type undecodable struct{ report }

func (*undecodable) Sample(int) *agent.Sample { panic("decoded") }

func TestKnownSamplesAreNotDecoded(t *testing.T) {
	a := newTest(t, Options{})
	r := samples(sample("a", agent.Gauge, 1, "x", "1"), sample("b", agent.Counter, 2), sample("a", agent.Gauge, 3, "x", "2"))
	for n := range byte(2) {
		a.Open(id(n), identity(string('m'+rune(n))), agent.Session{Epoch: 1})
		require.Empty(t, refusals(a.Report(id(n), 1, time.Now(), r)))
		require.Empty(t, refusals(a.Report(id(n), 1, time.Now(), r))) // the encodings are learnt
	}
	for i := range r.samples {
		r.samples[i].Value += 10
	}
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), &undecodable{*r})))
	require.Contains(t, forwardedText(t, a), `a{agent_name="n",template_name="tpl",username="user",workspace_name="ws",x="2"} 13`)
	require.Contains(t, forwardedText(t, a), `b{agent_name="n",template_name="tpl",username="user",workspace_name="ws"} 12`)
}

// A desc has one encoding, which holds a type: an agent that comes to send another
// type is noticed.
func TestEncodingOfAnotherType(t *testing.T) {
	a := newTest(t, Options{})
	for n := range byte(2) {
		a.Open(id(n), identity(string('m'+rune(n))), agent.Session{Epoch: 1})
	}
	require.Empty(t, refusals(a.Report(id(0), 1, time.Now(), samples(sample("a", agent.Counter, 1)))))
	require.Empty(t, refusals(a.Report(id(0), 1, time.Now(), samples(sample("a", agent.Counter, 1)))))
	require.Len(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1)))), 1)
	require.Empty(t, refusals(a.Report(id(0), 1, time.Now(), samples(sample("a", agent.Gauge, 3)))))
	require.Contains(t, forwardedText(t, a), "# TYPE a gauge")
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(sample("a", agent.Gauge, 1)))))
	require.Len(t, refusals(a.Report(id(0), 1, time.Now(), samples(sample("a", agent.Counter, 2)))), 1)
	require.Equal(t, 2, seriesOf(t, a, "a{"), "the one before stays for the TTL")
}

// bulky is a report with encodings that hold more than their series have.
type bulky struct{ report }

func (b *bulky) Encoding(i int) agent.SampleEncoding {
	f := b.report.Encoding(i)
	f.Tail += strings.Repeat("y", 100)
	return f
}

func TestEncodingsAreBounded(t *testing.T) {
	a := newTest(t, Options{})
	a.Open(id(1), identity("main"), agent.Session{Epoch: 1})
	s := sample("a", agent.Gauge, 1, "x", "1")
	encoding := func() *typedEncoding { return a.agent(id(1)).series[0].desc.encoding.Load() }
	for range 2 {
		require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), &bulky{*samples(s)})))
		require.Nil(t, encoding())
	}
	require.Empty(t, refusals(a.Report(id(1), 1, time.Now(), samples(s))))
	require.Equal(t, agent.SampleEncoding{Head: "\x02a", Tail: "x\x001\x00"}, encoding().SampleEncoding)
}
