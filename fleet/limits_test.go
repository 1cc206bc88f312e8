package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/fleet/internal/budget"
	"github.com/coder/agentstatsd/internal/bubble"
)

// An agent that floods is slowed to its rates, then refused for a while, over its
// sessions.
func TestBudgetOfFloods(t *testing.T) {
	excess := map[string]string{
		budget.ReasonMessages: `^messages of the agent: want at most 2000 at once \(--agent-message-burst\) and 200 a second after that \(--agent-message-rate\), got 20\d\d$`,
		budget.ReasonBytes:    `^bytes of the agent: want at most 8388608 at once \(--agent-byte-burst\) and 524288 a second after that \(--agent-byte-rate\), got (8|9)\d{6}$`,
	}
	for name, size := range map[string]int{budget.ReasonMessages: 100, budget.ReasonBytes: 1 << 20} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				f := loaded(t, Options{}, registration(1, 1, 1), registration(2, 2, 1))
				o := Options{}.withDefaults()
				start, messages := time.Now(), 0
				for session := 1; ; session++ {
					require.Zero(t, f.Admit(nid(1)))
					s, err := f.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: int64(session)})
					require.NoError(t, err)
					var wait, retry time.Duration
					for range 40 { // then it connects again, which helps nothing
						if wait, retry, _ = s.Charge(time.Now(), size); retry > 0 {
							break
						}
						messages++
						time.Sleep(wait)
					}
					if retry > 0 {
						require.Equal(t, budget.Penalty, retry)
						break
					}
				}
				flooded := time.Since(start)
				require.GreaterOrEqual(t, flooded, budget.Grace)
				require.Less(t, flooded, budget.Grace+5*time.Second)
				require.LessOrEqual(t, messages, o.MessagesBurst+int(flooded.Seconds()+1)*o.MessagesPerSecond)
				require.LessOrEqual(t, messages*size, o.BytesBurst+int(flooded.Seconds()+3)*o.BytesPerSecond)
				require.Equal(t, budget.Penalty, f.Admit(nid(1)), "who comes back at once is refused")
				require.Regexp(t, excess[name], f.Excess(nid(1)))
				time.Sleep(budget.Penalty - time.Second)
				require.Equal(t, time.Second, f.Admit(nid(1)))
				time.Sleep(time.Second)
				require.Zero(t, f.Admit(nid(1)))
				require.Zero(t, f.Admit(nid(2)), "nobody else is")
			})
		})
	}
}

// An agent with too many refused items is refused for a while, whatever it sends in
// between.
func TestBudgetOfRefusals(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := loaded(t, Options{}, registration(1, 1, 1))
		s, err := f.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
		require.NoError(t, err)
		require.Zero(t, s.ChargeRefused(4000, 0))
		require.Zero(t, f.Admit(nid(1)))
		require.Equal(t, 240*time.Millisecond, s.ChargeRefused(1000, 24<<10), "bytes count too")
		require.Equal(t, 240*time.Millisecond, f.Admit(nid(1)))
		time.Sleep(240 * time.Millisecond)
		require.Zero(t, f.Admit(nid(1)))
		require.Equal(t, 50*time.Second, f.ChargeRefused(nid(1), 40_000_000, 1<<20), "at most a burst is waited for")
		require.Equal(t, 50*time.Second, f.Admit(nid(1)))
		require.Zero(t, f.ChargeRefused(nid(9), 1, 1), "nobody's")
	})
}

// What the database refuses is charged like what is refused on receipt, and ends
// the session with the agent's next message.
func TestBudgetOfRefusalsByTheDatabase(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := loaded(t, Options{RefusedPerSecond: 1, RefusedBurst: 3}, registration(1, 1, 1), registration(2, 2, 1))
		s := connect(t, p, 1)
		refused := func(seq int64, count int) {
			receive(t, s, seq, func(r Request) { r.Tracker().AddPending(seq) })
			s.instance.Resolve([]agent.Resolution{{Sequence: seq, Refusal: &agent.Refusal{Kind: agent.RefusedStore, Count: count}}})
		}
		refused(1, 1)
		p.store.reject = nid(1) // of a state, too
		receive(t, s, 2, func(r Request) { r.SetLifecycle(agent.Lifecycle{State: agent.LifecycleReady}, 0) })
		require.NoError(t, p.write(t.Context()))
		_, retry, _ := s.Charge(time.Now(), 100)
		require.Zero(t, retry)
		require.Zero(t, p.Admit(nid(1)))
		refused(3, 2)
		_, refusals, ok := s.NextAck()
		require.True(t, ok, "it gets the reason before it goes")
		require.Len(t, refusals, 3)
		_, retry, by := s.Charge(time.Now(), 100)
		require.Equal(t, time.Second, retry)
		require.True(t, by)
		require.Equal(t, "refused items of the agent: want at most 3 at once (--agent-refused-burst) and 1 a second after that (--agent-refused-rate), got 4", p.Excess(nid(1)))
		require.Equal(t, time.Second, p.Admit(nid(1)))
		require.Zero(t, p.Admit(nid(2)), "nobody else is away")
		require.Equal(t, []string{"refused 1"}, metric(t, p, "agentstatsd_agents_limited_total"))
		s.instance.Resolve([]agent.Resolution{{Sequence: 3}})
		time.Sleep(time.Second)
		require.Zero(t, p.Admit(nid(1)))
	})
}

// New series cost more than new values. An agent with new series in each report is
// slowed long before its messages alone would slow it.
func TestBudgetOfNewSeries(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := loaded(t, Options{}, registration(1, 1, 1))
		s, err := f.Connect(t.Context(), nid(1), Hello{Instance: instanceID(1), Ordinal: 1})
		require.NoError(t, err)
		messages := 0
		for {
			wait, retry, _ := s.Charge(time.Now(), 100)
			require.Zero(t, retry)
			if wait > 0 {
				break
			}
			messages++
			require.NoError(t, s.Receive(time.Now(), int64(messages), func(r Request) { r.ChargeSeries(200) }))
		}
		require.Equal(t, 49, messages, "each counts as 41, and 2,000 are the burst")
	})
}

// Sessions are opened no faster than the rate of messages allows, however often an
// agent tries.
func TestBudgetOfSessions(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := loaded(t, Options{}, registration(1, 1, 1))
		admitted := 0
		for range 60_000 {
			if f.Admit(nid(1)) == 0 {
				admitted++
			}
			time.Sleep(time.Millisecond)
		}
		// The burst, and the rate for 10 s before it is refused for 30 s, twice.
		require.InDelta(t, (2000+2*10*200)/budget.SessionMessages, admitted, 110)
	})
}
