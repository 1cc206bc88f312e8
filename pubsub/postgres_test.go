package pubsub

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/coder/agentstatsd/internal/postgrestest"
)

func newPostgres(t testing.TB, url string, opts Options) (*Postgres, *logged) {
	log := &logged{}
	p, err := NewPostgres(url, opts, prometheus.NewRegistry(), slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	return p, log
}

func openPostgres(t testing.TB, url string) *Postgres {
	p, _ := newPostgres(t, url, Options{})
	runEngine(t, p)
	waitConnected(p, true)
	return p
}

// query runs SQL on a connection of its own.
func query(t testing.TB, url, sql string) {
	t.Helper()
	conn, err := pgconn.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.Exec(t.Context(), sql).Close())
}

func TestPostgres(t *testing.T) {
	testContract(t, func(t testing.TB) Engine {
		return openPostgres(t, postgrestest.Shared(t).CreateDatabase(t))
	})
}

func TestPostgresReconnect(t *testing.T) {
	s := postgrestest.Start(t)
	s.Stop(t)
	p, log := newPostgres(t, s.URL(), Options{})
	testReconnect(t, p, p.metrics, log, func() { s.Restart(t) }, func() { s.Stop(t) })
	require.Empty(t, p.changes)
}

// An operator ends connections. The one that listens is made again and
// subscribers are notified; the one that publishes is replaced without an error.
func TestPostgresTerminated(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	p := openPostgres(t, url)
	got := subscribe(t, p, "a")
	publish(t, p, "a", "1")
	got.waitFor("1")
	for i := range 3 {
		query(t, url, `SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
			WHERE application_name = 'agentstatsd' AND datname = current_database()`)
		publish(t, p, "b", "to nobody")
		got.waitFor("nil")
		waitConnected(p, true)
		last := fmt.Sprint("again ", i)
		publish(t, p, "a", last)
		got.waitFor(last)
	}
	require.Equal(t, 3.0, testutil.ToFloat64(p.metrics.reconnects))
	require.Zero(t, testutil.ToFloat64(p.metrics.publishErrors))
}

func TestPostgresReplicas(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	testReplicas(t, openPostgres(t, url), openPostgres(t, url))
}

// Subscribing interrupts the connection's wait for messages. However often that
// happens, and wherever in a message, nothing is lost and the connection stays.
func TestPostgresSubscribeInTraffic(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	publisher := openPostgres(t, url)
	p, log := newPostgres(t, url, Options{CheckInterval: time.Hour}) // nothing else ends a wait
	stop := runEngine(t, p)
	waitConnected(p, true)
	all := newReceived()
	cancel, err := p.Subscribe("a", all.add)
	require.NoError(t, err)
	done := make(chan struct{})
	var traffic, group errgroup.Group
	traffic.Go(func() error {
		defer publisher.Publish(t.Context(), "a", []byte("last"))
		for n := 0; ; n++ {
			select {
			case <-done:
				return nil
			default:
			}
			// Messages of all sizes, so that reads end in the middle of them.
			payload := fmt.Sprintf("%d %s", n, strings.Repeat("p", n*997%(MaxPayload-10)))
			if err := publisher.Publish(t.Context(), "a", []byte(payload)); err != nil {
				return err
			}
			if n%(queueLength/2) == 0 {
				all.waitFor(payload) // or the subscriber could overflow
			}
		}
	})
	for from := range 4 {
		group.Go(func() error {
			for i := range 250 {
				channel := fmt.Sprint("b", (from+i)%3)
				got := newReceived()
				cancel, err := p.Subscribe(channel, got.add)
				if err != nil {
					return err
				}
				last := fmt.Sprint(from, " ", i)
				if err := p.Publish(t.Context(), channel, []byte(last)); err != nil {
					return err
				}
				got.waitForAny(last)
				cancel()
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	close(done)
	require.NoError(t, traffic.Wait())
	messages := all.waitFor("last")
	cancel()
	for i, message := range messages[:len(messages)-1] {
		require.True(t, strings.HasPrefix(message, fmt.Sprint(i, " ")), "message %d is %.20q", i, message)
	}
	stop()
	require.Zero(t, testutil.ToFloat64(p.metrics.reconnects))
	require.Empty(t, log.String())
	require.Empty(t, p.channels)
}

// What no engine published is handed over as missed.
func TestPostgresForeign(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	p := openPostgres(t, url)
	got := subscribe(t, p, "a")
	query(t, url, "NOTIFY a; NOTIFY other")
	publish(t, p, "a", "1")
	require.Equal(t, []string{"nil", "1"}, got.waitFor("1"))
}

func serverAddress(t *testing.T, text string) string {
	u, err := url.Parse(text)
	require.NoError(t, err)
	return u.Host
}

func TestPostgresSilentServer(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	proxy := newProxy(t, serverAddress(t, url))
	p, _ := newPostgres(t, strings.Replace(url, serverAddress(t, url), proxy.address(), 1),
		Options{CheckInterval: 500 * time.Millisecond, Timeout: time.Second})
	testSilentServer(t, p, proxy)
}

func TestPostgresLeavesNothing(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	proxy := newProxy(t, serverAddress(t, url))
	testLeavesNothing(t, proxy, func() Engine {
		p, _ := newPostgres(t, strings.Replace(url, serverAddress(t, url), proxy.address(), 1), Options{Timeout: time.Hour})
		return p
	})
}

func TestPostgresBreaks(t *testing.T) {
	url := postgrestest.Shared(t).CreateDatabase(t)
	proxy := newProxy(t, serverAddress(t, url))
	publisher, _ := newPostgres(t, strings.Replace(url, serverAddress(t, url), proxy.address(), 1), Options{})
	testBreaks(t, publisher, openPostgres(t, url), proxy)
}

// What arrives between a LISTEN or UNLISTEN and its answer belongs to nobody:
// it may be from before a gap.
func TestPostgresChanges(t *testing.T) {
	p, _ := newPostgres(t, "postgres://u@h", Options{})
	l := newListener(p)
	message := func(payload string) {
		l.notified(nil, &pgconn.Notification{Channel: "a", Payload: payload})
	}
	join := func() (*received, *subscriber, <-chan struct{}) {
		got := newReceived()
		s := newSubscriber(got.add)
		t.Cleanup(s.stop)
		return got, s, p.addSubscriber("a", s)
	}
	change := func(listens, unlistens int, meanwhile func()) {
		listen, unlisten := l.takeChanges()
		require.Len(t, listen, listens)
		require.Len(t, unlisten, unlistens)
		meanwhile()
		l.noteChanges(listen, unlisten)
	}
	p.listening = true

	first, s1, ready := join()
	message("too early")
	change(1, 0, func() {
		message("too early")
		select {
		case <-ready:
			t.Error("ready before the server answered")
		default:
		}
	})
	<-ready
	message("1")
	second, s2, ready := join()
	require.Nil(t, ready, "there already")
	message("2")
	require.Equal(t, []string{"1", "2"}, first.waitFor("2"))
	require.Equal(t, []string{"2"}, second.waitFor("2"))

	// The last goes and another comes, before the server knows.
	p.removeSubscriber("a", s1)
	p.removeSubscriber("a", s2)
	third, s3, ready := join()
	require.Nil(t, ready)
	change(0, 0, func() { message("3") })
	require.Equal(t, []string{"3"}, third.waitFor("3"))

	// The same while the server gets the command.
	p.removeSubscriber("a", s3)
	var fourth *received
	change(0, 1, func() {
		fourth, _, ready = join()
		message("on the way")
	})
	require.NotNil(t, ready)
	message("on the way")
	change(1, 0, func() {})
	<-ready
	message("4")
	require.Equal(t, []string{"4"}, fourth.waitFor("4"))

	// A lost connection.
	p.unlisten()
	l = newListener(p)
	p.listening = true
	p.changes["a"] = struct{}{}
	message("before nil")
	fifth, _, ready := join()
	require.NotNil(t, ready)
	change(1, 0, func() { message("before nil") })
	l.resynchronise()
	message("5")
	require.Equal(t, []string{"4", "nil", "5"}, fourth.waitFor("5"))
	require.Equal(t, []string{"nil", "5"}, fifth.waitFor("5"))
	require.Equal(t, []string{"1", "2"}, first.waitFor("2"))

	// Nothing is kept of a channel whose last subscriber goes just before that.
	for s := range p.channels["a"].subscribers {
		p.removeSubscriber("a", s)
	}
	require.NotEmpty(t, p.channels)
	p.unlisten()
	require.Empty(t, p.channels)
	require.Empty(t, p.changes)
}

// PgBouncer in transaction mode takes a LISTEN, for whoever gets the server
// connection next.
func TestPostgresThroughPgBouncer(t *testing.T) {
	s := postgrestest.Shared(t)
	database := s.CreateDatabase(t)
	direct := openPostgres(t, database)
	got := subscribe(t, direct, "a")
	p, log := newPostgres(t, s.PgBouncer(t, database), Options{PingInterval: 50 * time.Millisecond})
	stop := runEngine(t, p)
	waitError(p, "messages do not arrive: one to itself was not delivered within 50ms")
	for !strings.Contains(log.String(), "what is sent by the pubsub does not arrive") {
		time.Sleep(time.Millisecond) // it is logged next
	}
	require.Equal(t, 1, strings.Count(log.String(), "what is sent by the pubsub does not arrive"))
	require.Contains(t, log.String(), "a pooler in transaction mode takes a LISTEN and delivers nothing")
	publish(t, p, "a", "published all the same")
	got.waitFor("published all the same")
	stop()
}

func TestPostgresSecrets(t *testing.T) {
	text := postgrestest.Shared(t).CreateDatabase(t)
	wrong := strings.Replace(strings.Replace(text, "postgres@", "postgres:s3cr3t@", 1), "/test_", "/nosuch_", 1)
	p, log := newPostgres(t, wrong, Options{})
	runEngine(t, p)
	waitError(p, "does not exist (SQLSTATE 3D000)")
	err := p.Publish(t.Context(), "a", []byte("x"))
	require.ErrorContains(t, err, "does not exist")
	require.NotContains(t, err.Error()+p.Connected().Error()+log.String(), "s3cr3t")

	reg := prometheus.NewRegistry()
	for url, want := range map[string]string{
		"":                                    "does not begin with postgres://",
		"host=a password=s3cr3t":              "does not begin with postgres://",
		"mysql://u:s3cr3t@h":                  "does not begin with postgres://",
		"postgres://u:s3cr3t/x@h/d":           "the URL is malformed",
		"postgres://u:1/s3cr3t@h/d":           "the URL has an @ behind its host",
		"postgres://u:%zzs3cr3t@h/d":          "the URL is malformed",
		"postgres://u:s3cr3t@h:s3cr3t/d":      "the URL is malformed",
		"postgres://u:s3cr3t@h/d?sslmode=odd": "sslmode is invalid",
	} {
		_, err := NewPostgres(url, Options{}, reg, slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "pubsub: PostgreSQL: ", url)
		require.ErrorContains(t, err, want, url)
		require.NotContains(t, err.Error(), "s3cr3t")
	}
	_, err = NewPostgres("postgres://u@h", Options{Timeout: -1}, reg, slog.New(slog.DiscardHandler))
	require.EqualError(t, err, "pubsub options: timeout: want at least 0, got -1ns")
	_, err = NewPostgres("postgresql://u:s3cr3t@h:1,h:2/d?sslmode=require", Options{}, reg, slog.New(slog.DiscardHandler))
	require.NoError(t, err, "several hosts")
	_, err = NewPostgres("postgres://u@h", Options{}, reg, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "pubsub: register metrics: duplicate metrics collector")
}

func BenchmarkPostgres(b *testing.B) {
	benchmarkEngine(b, openPostgres(b, postgrestest.Start(b, postgrestest.Durable()).URL()))
}
