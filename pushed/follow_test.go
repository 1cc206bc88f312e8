package pushed

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/bubble"
	"github.com/coder/agentstatsd/pubsub"
)

func counter(value string) string { return "# TYPE x_total counter\nx_total " + value + "\n" }

func follow(t *testing.T, f *Families, now time.Time) {
	t.Helper()
	require.NoError(t, f.follow(t.Context(), now))
}

// total returns what a replica counts that serves.
func total(t *testing.T, f *Families) float64 {
	t.Helper()
	return check(t, f)[`{__name__="x_total"}`]
}

// A stream moves between replicas that do not know of one another: each push
// is decided on the newest row.
func TestMove(t *testing.T) {
	database := new(memory)
	a, b := open(t, database, Options{}), open(t, database, Options{})
	pushText(t, a, start, 1, 1, counter("5"))
	pushText(t, b, start, 1, 2, counter("3")) // a reset
	require.Equal(t, 8.0, total(t, b))
	pushText(t, a, start, 1, 2, counter("3")) // stored by b, the ack was lost
	require.Equal(t, 8.0, total(t, a))
	require.Equal(t, 1.0, testutil.ToFloat64(a.metrics.pushes.WithLabelValues(outcomeDuplicate)))
	pushText(t, b, start, 1, 3, counter("1"))
	pushText(t, a, start, 1, 4, counter("2"))
	require.Equal(t, 10.0, total(t, a))
	follow(t, b, start)
	require.Equal(t, 10.0, total(t, b))
	require.Equal(t, 2.0, testutil.ToFloat64(a.metrics.outdated))

	// Stored, but answered by an error; then pushed again to the same.
	database.loseNext()
	p := agent.Push{Instance: instanceID(1), Snapshot: 5, Families: serialize(t, parseText(t, counter("1"))...)}
	_, err := a.Push(t.Context(), start, p)
	require.ErrorContains(t, err, "the connection is lost")
	require.Equal(t, 10.0, total(t, a), "not known to be durable")
	_, err = a.Push(t.Context(), start, p)
	require.NoError(t, err)
	require.Equal(t, 11.0, total(t, a))
	require.NoError(t, a.Healthy())
}

// Nobody is forgotten to make room for an instance that another replica knows.
func TestMoveWithoutRoom(t *testing.T) {
	database := new(memory)
	opts := Options{MaxInstances: 2}
	a, b := open(t, database, opts), open(t, database, opts)
	pushText(t, a, start, 1, 1, counter("5"))
	follow(t, b, start)
	pushText(t, b, start, 2, 1, counter("7"))
	_, err := a.Push(t.Context(), start, agent.Push{Instance: instanceID(3), Snapshot: 1, Final: true})
	require.NoError(t, err)
	pushText(t, a, start, 2, 2, counter("8"))
	require.Contains(t, database.rows, instanceID(3))
	require.Equal(t, 13.0, total(t, a))
	require.Zero(t, testutil.ToFloat64(a.metrics.outdated))
}

// A caller who goes away says nothing of the store.
func TestCallerGoes(t *testing.T) {
	database := new(memory)
	f := open(t, database, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	database.script = func() (err, lost error) {
		cancel()
		return nil, nil
	}
	_, err := f.Push(ctx, start, agent.Push{Instance: instanceID(1), Snapshot: 1})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, f.Healthy())
	ctx, again := context.WithCancel(t.Context())
	defer again()
	cancel = again
	require.ErrorIs(t, f.Follow(ctx), context.Canceled)
	require.NoError(t, f.readError.err)
	require.Len(t, f.followRequested, 1, "and it is found out what the store has")
}

// Somebody else writes the row each time: after a few attempts the pusher is
// reported, and nothing is lost.
func TestOutdatedForEver(t *testing.T) {
	database := new(memory)
	f := open(t, database, Options{})
	bump := func() (err, lost error) {
		database.mu.Lock()
		defer database.mu.Unlock()
		if row, ok := database.rows[instanceID(1)]; ok {
			row.Version++
			database.rows[instanceID(1)] = row
		}
		return nil, nil
	}
	pushText(t, f, start, 1, 1, counter("5"))
	database.script = bump
	_, err := f.Push(t.Context(), start, agent.Push{Instance: instanceID(1), Snapshot: 2, Families: serialize(t, parseText(t, counter("7"))...)})
	require.ErrorIs(t, err, agent.ErrOutdated)
	require.Equal(t, float64(decisions), testutil.ToFloat64(f.metrics.outdated))
	require.NoError(t, f.Healthy())
	database.script = nil
	pushText(t, f, start, 1, 3, counter("8"))
	require.Equal(t, 8.0, total(t, f))
}

// A row that was removed and came back has a version that was there before.
func TestSameVersion(t *testing.T) {
	database := new(memory)
	opts := Options{MaxInstances: 1}
	a, b := open(t, database, opts), open(t, database, opts)
	now := start
	push := func(id byte, snapshot int64, value string) {
		t.Helper()
		now = now.Add(1)
		_, err := a.Push(t.Context(), now, agent.Push{
			Instance: instanceID(id), Snapshot: snapshot, Final: true, Families: serialize(t, parseText(t, counter(value))...),
		})
		require.NoError(t, err)
	}
	push(1, 1, "5")
	follow(t, b, start)
	push(2, 1, "7")
	push(1, 2, "6")
	require.Equal(t, int64(1), database.rows[instanceID(1)].Version)
	follow(t, b, start)
	require.Equal(t, 5+7+6.0, total(t, a))
	require.Equal(t, total(t, a), total(t, b))

	// Folded, so of version 2; then forgotten, without anything to fold.
	now = now.Add(25 * time.Hour)
	require.NoError(t, a.foldIdle(t.Context(), now))
	follow(t, b, now)
	now = now.Add(8 * 24 * time.Hour)
	require.NoError(t, a.foldIdle(t.Context(), now))
	require.NotContains(t, database.rows, instanceID(1))
	push(1, 3, "2")
	push(1, 4, "3")
	require.Equal(t, int64(2), database.rows[instanceID(1)].Version)
	follow(t, b, now)
	require.Equal(t, 5+7+6+3.0, total(t, a))
	require.Equal(t, total(t, a), total(t, b))
}

// A fold between two readings is seen wholly.
func TestFoldWhileFollowing(t *testing.T) {
	database := new(memory)
	a, b := open(t, database, Options{}), open(t, database, Options{})
	pushText(t, a, start, 1, 1, counter("5"))
	pushText(t, a, start, 2, 1, counter("7"))
	late := start.Add(25 * time.Hour)
	a.expire(late)
	require.NoError(t, a.foldIdle(t.Context(), late))
	pushText(t, a, late, 1, 2, counter("6"))
	follow(t, b, late)
	pushText(t, a, late, 1, 3, counter("8"))
	calls := 0
	database.script = func() (err, lost error) {
		if calls++; calls == 2 { // the versions are read, the rows are not
			a.expire(late.Add(25 * time.Hour))
			return a.foldIdle(t.Context(), late.Add(25*time.Hour)), nil
		}
		return nil, nil
	}
	follow(t, b, late)
	require.Equal(t, 3.0, testutil.ToFloat64(a.metrics.folded))
	database.script = nil
	follow(t, a, late)
	require.Equal(t, 0.0, testutil.ToFloat64(a.metrics.rowsRead), "it knows what it wrote")
	require.Equal(t, 15.0, total(t, b))
}

// Of two replicas the one folds that leads; an instance that pushed to the other
// meanwhile is not idle.
func TestFoldBeside(t *testing.T) {
	database := new(memory)
	var l lease
	a, b := open(t, database, Options{Lease: l.of(1)}), open(t, database, Options{Lease: l.of(2)})
	l.give(1)
	follow(t, a, start)
	pushText(t, a, start, 1, 1, counter("5"))
	pushText(t, a, start, 2, 1, counter("7"))
	late := start.Add(25 * time.Hour)
	pushText(t, b, late, 1, 2, counter("6"))
	a.expire(late)
	b.expire(late)
	require.NoError(t, b.foldIdle(t.Context(), late))
	require.Len(t, database.rows, 2)
	require.NoError(t, a.foldIdle(t.Context(), late))
	require.Len(t, database.rows, 3)
	require.Equal(t, 1.0, testutil.ToFloat64(a.metrics.outdated))
	require.Equal(t, 1.0, testutil.ToFloat64(a.metrics.folded))
	require.Equal(t, 13.0, total(t, a))
	l.give(2)
	follow(t, b, late)
	require.Equal(t, 13.0, total(t, b))
	pushText(t, a, late, 2, 2, counter("9"))
	follow(t, b, late)
	require.Equal(t, 15.0, total(t, b))
}

// All replicas show the same of families that collide, though the clock of one
// is ahead.
func TestCollisionsFollowed(t *testing.T) {
	database := new(memory)
	a, b := open(t, database, Options{}), open(t, database, Options{})
	const gauge = "# TYPE x_total gauge\nx_total 6\n"
	ahead := start.Add(time.Minute)
	_, err := b.Push(t.Context(), ahead, agent.Push{Instance: instanceID(1), Snapshot: 1, Final: true, Families: serialize(t, parseText(t, counter("5"))...)})
	require.NoError(t, err)
	follow(t, a, start)
	same := func(want float64) {
		t.Helper()
		follow(t, a, start)
		follow(t, b, start)
		require.Equal(t, want, total(t, a))
		require.Equal(t, text(t, a), text(t, b))
		require.Equal(t, text(t, a), text(t, open(t, database, Options{})))
	}
	same(5)
	require.Empty(t, pushText(t, a, start, 2, 1, gauge))
	same(6)
	// Not pushed any more: what was counted is shown again.
	require.Empty(t, pushText(t, b, ahead, 2, 2, ""))
	same(5)

	// Two that did not know of one another.
	require.Empty(t, pushText(t, a, start.Add(time.Second), 3, 1, gauge))
	require.Empty(t, pushText(t, b, ahead.Add(time.Second), 4, 1, counter("1")))
	same(6)
	require.Len(t, pushText(t, a, start.Add(2*time.Second), 3, 2, gauge), 1)
	same(6)
}

// What is served of one instance goes on with the next leader, whichever
// instances come.
func TestStickyFollowed(t *testing.T) {
	database := new(memory)
	a := open(t, database, Options{})
	const family = "# TYPE coderd_license_active_users gauge\ncoderd_license_active_users "
	served := func(want float64) {
		t.Helper()
		follow(t, a, start)
		for _, f := range []*Families{a, open(t, database, Options{})} {
			require.Equal(t, want, check(t, f)[`{__name__="coderd_license_active_users"}`])
		}
	}
	pushText(t, a, start, 5, 1, family+"5\n")
	for i, id := range []byte{1, 9} {
		pushText(t, open(t, database, Options{}), start.Add(time.Duration(1+i)), id, 1, family+string('0'+rune(id))+"\n")
		served(5)
	}
	pushText(t, a, start.Add(time.Second), 5, 2, family+"6\n")
	served(6)
	pushText(t, a, start.Add(time.Second), 5, 3, "") // has it no more
	served(1)
	pushText(t, a, start.Add(2*time.Second), 5, 4, family+"7\n")
	served(1)
}

// A row of a replica whose clock is ahead keeps its gauges alive from when it was
// read.
func TestClockAhead(t *testing.T) {
	database := new(memory)
	opts := Options{SeriesTTL: time.Minute}
	a, b := open(t, database, opts), open(t, database, opts)
	pushText(t, a, start.Add(time.Hour), 1, 1, "# TYPE g gauge\ng 1\n")
	follow(t, b, start)
	pushText(t, a, start.Add(time.Hour), 2, 1, counter("1"))
	follow(t, b, start.Add(30*time.Second)) // does not read it again
	b.expire(start.Add(time.Minute - 1))
	require.Contains(t, text(t, b), "g 1")
	b.expire(start.Add(time.Minute))
	require.NotContains(t, text(t, b), "g 1")
}

// running is a replica that runs until the test ends.
func running(t *testing.T, store Store, opts Options) *Families {
	t.Helper()
	f, err := New(store, new(reserver), opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	synctest.Wait()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return f
}

func follows(f *Families, outcome string) float64 {
	return testutil.ToFloat64(f.metrics.follows.WithLabelValues(outcome))
}

// A leader serves when it has read what was stored before it came to lead.
func TestLease(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := new(memory)
		var l lease
		a, b := running(t, database, Options{Lease: l.of(1)}), running(t, database, Options{Lease: l.of(2)})
		pushText(t, a, time.Now(), 1, 1, counter("5"))
		require.Empty(t, text(t, a))
		l.give(1)
		require.Empty(t, text(t, a))
		time.Sleep(leaseCheck)
		synctest.Wait()
		require.Equal(t, counter("5"), text(t, a))
		require.Empty(t, text(t, b))
		require.Empty(t, b.reserver.(*reserver).get())
		pushText(t, a, time.Now(), 1, 2, counter("6"))

		// The database is away: who leads goes on, who comes to lead must wait.
		database.fail(errors.New("away"))
		time.Sleep(time.Minute)
		require.Equal(t, counter("6"), text(t, a))
		l.give(2)
		time.Sleep(time.Minute)
		require.Empty(t, text(t, a))
		require.Empty(t, text(t, b))
		database.fail(nil)
		time.Sleep(maxRetry)
		synctest.Wait()
		require.Equal(t, counter("6"), text(t, b))
		require.Contains(t, b.reserver.(*reserver).get(), "x_total")

		// Lost and won again before anybody looked.
		pushText(t, b, time.Now(), 1, 3, counter("7"))
		l.give(1)
		time.Sleep(leaseCheck + followPause)
		synctest.Wait()
		require.Equal(t, counter("7"), text(t, a))
		l.give(2)
		pushText(t, b, time.Now(), 1, 4, counter("8"))
		l.give(1)
		require.Empty(t, text(t, a))
	})
}

// What was read in one term is not enough for the next.
func TestTermEnds(t *testing.T) {
	database := new(memory)
	var l lease
	l.give(1)
	f := open(t, database, Options{Lease: l.of(1)})
	pushText(t, f, start, 1, 1, counter("5"))
	require.Equal(t, 5.0, total(t, f))
	database.script = func() (err, lost error) {
		l.give(2)
		l.give(1)
		return nil, nil
	}
	follow(t, f, start)
	require.Empty(t, text(t, f))
	database.script = nil
	follow(t, f, start)
	require.Equal(t, 5.0, total(t, f))
}

// bus is a real one that can be made to fail.
type bus struct {
	*pubsub.Memory
	mu  sync.Mutex
	err error
}

func (b *bus) Publish(ctx context.Context, channel string, payload []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	return b.Memory.Publish(ctx, channel, payload)
}

// A push is known to others when the notification is there, without them after
// FollowInterval, and its publisher does not read it.
func TestNotification(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := new(memory)
		engine, err := pubsub.NewMemory(prometheus.NewRegistry())
		require.NoError(t, err)
		notifier := &bus{Memory: engine}
		var l lease
		l.give(2)
		opts := func(replica int) Options {
			return Options{Lease: l.of(replica), Notifier: notifier, FollowInterval: time.Hour}
		}
		a, b := running(t, database, opts(1)), running(t, database, opts(2))
		time.Sleep(time.Second)
		synctest.Wait()
		unchanged := follows(a, followUnchanged)
		pushText(t, a, time.Now(), 1, 1, counter("5"))
		synctest.Wait()
		require.Equal(t, counter("5"), text(t, b))
		// Many at once are read at once.
		for n := range int64(9) {
			pushText(t, a, time.Now(), 1, 2+n, counter("6"))
		}
		time.Sleep(2 * followPause)
		synctest.Wait()
		require.Equal(t, counter("6"), text(t, b))
		require.LessOrEqual(t, follows(b, followChanged), 3.0)
		require.Equal(t, unchanged, follows(a, followUnchanged)+follows(a, followChanged), "of its own pushes")

		// Notifications that were missed, that make no sense, or that it has.
		before := follows(b, followUnchanged)
		for i, payload := range []string{"", "zz 1", "00 1", strings.Repeat("00", 40) + " 1", "0c00000000000000000000000000000b 1"} {
			b.handleNotification([]byte(payload))
			time.Sleep(2 * followPause)
			synctest.Wait()
			require.Equal(t, before+1+float64(i), follows(b, followUnchanged))
		}
		b.handleNotification([]byte("0c000000000000000000000000000001 10"))
		time.Sleep(2 * followPause)
		synctest.Wait()
		require.Equal(t, before+5, follows(b, followUnchanged))

		notifier.mu.Lock()
		notifier.err = errors.New("no bus")
		notifier.mu.Unlock()
		pushText(t, a, time.Now(), 1, 11, counter("7"))
		require.Equal(t, 1.0, testutil.ToFloat64(a.metrics.notificationErrors))
		require.NoError(t, a.Healthy())
		synctest.Wait()
		require.Equal(t, counter("6"), text(t, b))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, counter("7"), text(t, b))
	})
}

// Who cannot read what others store is unhealthy after a few intervals, who is
// alone reads what it does not know to be stored.
func TestUnread(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		database := new(memory)
		var l lease
		f := running(t, database, Options{Lease: l.of(1)})
		require.NoError(t, f.Healthy())
		database.fail(errors.New("away"))
		time.Sleep(5*time.Second + unreadIntervals*5*time.Second)
		require.NoError(t, f.Healthy())
		time.Sleep(time.Second)
		require.ErrorContains(t, f.Healthy(), "stored pushes are not read since")
		database.fail(nil)
		time.Sleep(maxRetry)
		synctest.Wait()
		require.NoError(t, f.Healthy())

		alone := running(t, new(memory), Options{})
		alone.store.(*memory).loseNext()
		_, err := alone.Push(t.Context(), time.Now(), agent.Push{Instance: instanceID(1), Snapshot: 1, Families: serialize(t, parseText(t, counter("5"))...)})
		require.Error(t, err)
		synctest.Wait()
		require.Equal(t, counter("5"), text(t, alone))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 1.0, follows(alone, followChanged))
		require.LessOrEqual(t, follows(alone, followUnchanged), 1.0, "nobody to follow")
	})
}
