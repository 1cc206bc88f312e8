package targets

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/coder/agentstatsd/coderdapi"
	"github.com/coder/agentstatsd/internal/bubble"
)

const (
	first  = "http://coderd-0:2112/"
	second = "http://coderd-1:2112/"
)

// What coderd has is served, native histograms too, and read from gzip.
func TestScrape(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		p := newProcess(100)
		p.requests.Add(3)
		p.current.Set(2)
		p.native.Observe(1)
		var headers []http.Header
		s.serve("coderd-0:2112", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			headers = append(headers, r.Header)
			p.handler().ServeHTTP(w, r)
		}))
		b := s.start(Options{URLs: []string{first}})
		synctest.Wait()
		s.requireServed("coderd_test_total", "coderd_test_total 3")
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 2")
		var encoded bytes.Buffer
		require.NoError(t, s.pushed.WriteProtobuf(&encoded))
		families := make(map[string]*dto.MetricFamily)
		for encoded.Len() > 0 {
			var f dto.MetricFamily
			require.NoError(t, protodelim.UnmarshalFrom(&encoded, &f))
			families[f.GetName()] = &f
		}
		require.Equal(t, []int64{1}, families["coderd_test_seconds"].Metric[0].Histogram.PositiveDelta)

		time.Sleep(interval)
		p.requests.Inc()
		time.Sleep(interval)
		s.requireServed("coderd_test_total", "coderd_test_total 4")
		synctest.Wait()
		require.Equal(t, 3, b.scrapes("coderd-0:2112", outcomePushed))
		require.Equal(t, "gzip", headers[0].Get("Accept-Encoding"))
		require.Contains(t, headers[0].Get("Accept"), "application/vnd.google.protobuf")
		require.Equal(t, "10", headers[0].Get("X-Prometheus-Scrape-Timeout-Seconds"))
		require.Empty(t, b.Warnings())
		require.InDelta(t, float64(time.Now().Unix()), testutil.ToFloat64(b.metrics.scraped.WithLabelValues("coderd-0:2112")), 1)
		require.Positive(t, testutil.ToFloat64(b.metrics.samples.WithLabelValues("coderd-0:2112")))

		// The end of a bridge is none of coderd: its gauges go as they expire.
		b.stop()
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 2")
		time.Sleep(2*time.Minute + time.Second)
		s.requireServed("coderd_api_concurrent_requests")
		s.requireServed("coderd_test_total", "coderd_test_total 4")
	})
}

// A process that begins anew adds to the counts, and its gauges replace those of before
// at once.
func TestProcessStartsAnew(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		p := newProcess(100)
		p.requests.Add(3)
		p.current.Set(2)
		stop := s.serve("coderd-0:2112", p.handler())
		b := s.start(Options{URLs: []string{first}})
		time.Sleep(time.Second)
		stop()
		time.Sleep(interval)
		require.Equal(t, 1, b.scrapes("coderd-0:2112", outcomeUnreachable))
		require.Len(t, b.Warnings(), 1)
		require.Contains(t, b.Warnings()[0], "coderd is not scraped: coderd-0:2112")
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 2")
		p = newProcess(120)
		p.requests.Add(1)
		p.current.Set(5)
		s.serve("coderd-0:2112", p.handler())
		time.Sleep(interval)
		s.requireServed("coderd_test_total", "coderd_test_total 4")
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 5")
		require.Empty(t, b.Warnings())
		require.Contains(t, b.log.String(), "coderd is scraped again")
	})
}

// Of processes that answer by turns none is taken for the end of another.
func TestProcessesByTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		old, young := newProcess(100), newProcess(120)
		old.current.Set(1)
		young.current.Set(10)
		n := 0
		s.serve("coderd-0:2112", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n++
			[]*process{old, young}[n%2].handler().ServeHTTP(w, r)
		}))
		b := s.start(Options{URLs: []string{first}})
		time.Sleep(10*interval + time.Second)
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 11")
		require.Equal(t, 1, strings.Count(b.log.String(), "several coderds answer by turns"))
	})
}

// Two bridges name one coderd the same instance, count it once, and one of them stands by
// until the other is gone.
func TestTwoBridges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		p := newProcess(100)
		p.current.Set(1)
		s.serve("coderd-0:2112", p.handler())
		one := s.start(Options{URLs: []string{first}})
		time.Sleep(4 * time.Second)
		two := s.start(Options{URLs: []string{first}})
		require.Zero(t, two.scrapes("coderd-0:2112", outcomePushed))
		for range 40 {
			p.requests.Inc()
			time.Sleep(interval)
			s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 1")
		}
		time.Sleep(interval)
		s.requireServed("coderd_test_total", "coderd_test_total 40")
		require.Equal(t, 42, one.scrapes("coderd-0:2112", outcomePushed))
		require.Zero(t, two.scrapes("coderd-0:2112", outcomePushed))
		require.Equal(t, 1.0, testutil.ToFloat64(two.metrics.standby))
		require.Empty(t, two.Warnings())

		one.stop()
		p.requests.Inc()
		time.Sleep(2 * interval)
		s.requireServed("coderd_test_total", "coderd_test_total 41")
		require.Zero(t, testutil.ToFloat64(two.metrics.standby))
	})
}

// Where no targets are granted, two bridges scrape each coderd, and count it once.
func TestTwoBridgesWithoutGrants(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t, func(c *coderdapi.Components) { c.Tasks = nil })
		p := newProcess(100)
		p.current.Set(1)
		s.serve("coderd-0:2112", p.handler())
		one := s.start(Options{URLs: []string{first}})
		time.Sleep(4 * time.Second)
		two := s.start(Options{URLs: []string{first}})
		for range 40 {
			p.requests.Inc()
			time.Sleep(interval)
			s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 1")
		}
		time.Sleep(interval + time.Second)
		s.requireServed("coderd_test_total", "coderd_test_total 40")
		require.Equal(t, 42, one.scrapes("coderd-0:2112", outcomePushed))
		require.Equal(t, 42, two.scrapes("coderd-0:2112", outcomeSuperseded))
		require.Empty(t, two.Warnings())
	})
}

// Coderds that started at the same moment are two, also if each is on loopback of a
// machine.
func TestIdentity(t *testing.T) {
	targets := func(host string) *Targets { return &Targets{opts: Options{Host: host}} }
	id := func(host, name string, start float64) [16]byte {
		return newTarget(targets(host), name, nil).identify(start)
	}
	require.Equal(t, id("a", "coderd:2112", 1), id("b", "coderd:2112", 1))
	require.NotEqual(t, id("a", "coderd:2112", 1), id("a", "coderd:2113", 1))
	require.NotEqual(t, id("a", "coderd:2112", 1), id("a", "coderd:2112", 1.01))
	for _, name := range []string{"localhost:2112", "127.0.0.1:2112", "[::1]:2112"} {
		require.Equal(t, id("a", name, 1), id("a", name, 1))
		require.NotEqual(t, id("a", name, 1), id("b", name, 1))
	}
	require.NotEqual(t, id("a", "localhost:2112", 1), [16]byte{})
}

// All addresses of a name are scraped, at once when they are new, and while the name
// cannot be looked up.
func TestLookups(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		for i, address := range []string{"10.0.0.1:2112", "10.0.0.2:2112"} {
			p := newProcess(100)
			p.current.Set(float64(1 + 9*i))
			p.requests.Add(1)
			s.serve(address, p.handler())
		}
		s.resolve(nil, "10.0.0.1", "::ffff:10.0.0.2", "fd00::1")
		b := s.start(Options{URLs: []string{"dns+http://coderd:2112/"}})
		synctest.Wait()
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 11")
		require.Equal(t, 2.0, testutil.ToFloat64(b.metrics.targets))

		s.resolve(errors.New("no such host"))
		time.Sleep(time.Minute + time.Second)
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 11")
		require.Equal(t, []string{"addresses of coderd are not looked up: coderd:2112: no such host"}, b.Warnings())
		s.resolve(nil)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"addresses of coderd are not looked up: coderd:2112: it has no addresses"}, b.Warnings())
		require.Equal(t, 2.0, testutil.ToFloat64(b.metrics.targets))

		// The gauges of what is no address any more go at once.
		s.resolve(nil, "10.0.0.2")
		time.Sleep(31 * time.Second)
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 10")
		s.requireServed("coderd_test_total", "coderd_test_total 2")
		require.Empty(t, b.Warnings())
		require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.targets))
		s.resolve(nil, "10.0.0.1", "10.0.0.2")
		time.Sleep(time.Minute)
		s.requireServed("coderd_api_concurrent_requests", "coderd_api_concurrent_requests 11")
		s.requireServed("coderd_test_total", "coderd_test_total 2")
		require.Equal(t, 2, testutil.CollectAndCount(b.metrics.scraped))

		s.resolve(nil, "fd00::1")
		time.Sleep(time.Minute)
		require.Contains(t, b.Warnings()[0], "coderd is not scraped: [fd00::1]:2112")
	})
}

func TestMoreAddressesThanTargets(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		s.resolve(nil, "10.0.0.1", "10.0.0.2", "10.0.0.3")
		b := s.start(Options{URLs: []string{"dns+http://coderd:2112/"}, MaxTargets: 2})
		synctest.Wait()
		require.Equal(t, 2.0, testutil.ToFloat64(b.metrics.targets))
		require.Equal(t, 1.0, testutil.ToFloat64(b.metrics.lookups.WithLabelValues(lookupTooMany)))
	})
}

// What is broken costs itself alone. What agents forward and what the service computes is
// left out.
func TestFamiliesLeftOut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		s.serve("coderd-0:2112", textHandler(fmt.Sprintf(`# HELP good_total Good.
# TYPE good_total counter
good_total{a="x"} 1
# TYPE broken_total counter
broken_total{a="x} 1
# HELP forwarded %s
# TYPE forwarded gauge
forwarded 1
# TYPE agentstatsd_owned gauge
agentstatsd_owned 1
# TYPE late_total counter
late_total 7
`, forwardedHelp)))
		b := s.start(Options{URLs: []string{first}})
		time.Sleep(2*interval + time.Second)
		s.requireServed("good_total", `good_total{a="x"} 1`)
		s.requireServed("late_total", "late_total 7")
		s.requireServed("forwarded")
		require.Equal(t, 3, b.scrapes("coderd-0:2112", outcomePushed))
		require.Equal(t, 3, b.left(reasonMalformed))
		require.Equal(t, 3, b.left(reasonForwarded))
		require.Equal(t, 3, b.left(reasonOwned))
		require.Equal(t, 1, strings.Count(b.log.String(), "families of coderd are left out"))
		require.Contains(t, b.log.String(), "first=broken_total")
		time.Sleep(time.Minute)
		require.Equal(t, 2, strings.Count(b.log.String(), "families of coderd are left out"))
	})
}

// Of an answer that is not one nothing is served, and the next one may be.
func TestAnswersThatAreNone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		ended := make(chan struct{})
		for want, h := range map[outcome]http.Handler{
			outcomeStatus:      http.NotFoundHandler(),
			outcomeTooLarge:    textHandler("a_total 1\n" + strings.Repeat("b_total{c=\"d\"} 1\n", 1000)),
			outcomeContentType: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }),
			outcomeTimeout: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain; version=0.0.4")
				_, _ = w.Write([]byte("a_total 1\n"))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				ended <- struct{}{}
			}),
			outcomeMalformed: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", string(expfmt.FmtProtoDelim))
				_, _ = w.Write([]byte{200, 1, 2})
			}),
		} {
			s.serve(string(want)+":80", h)
			b := s.start(Options{URLs: []string{"http://user:hidden@" + string(want) + "/?token=hidden"}, MaxBodyBytes: 10_000})
			if want == outcomeTimeout {
				<-ended
			}
			synctest.Wait()
			require.Equal(t, 1, b.scrapes(string(want)+":80", want), b.log.String())
			require.Len(t, b.Warnings(), 1)
			require.NotContains(t, b.log.String()+b.Warnings()[0], "hidden")
			b.stop()
		}
		var out strings.Builder
		require.NoError(t, s.pushed.WriteText(&out))
		require.Empty(t, out.String())
	})
}

func TestServiceIsAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSetup(t)
		p := newProcess(100)
		s.serve("coderd-0:2112", p.handler())
		s.service.Stop()
		b := s.start(Options{URLs: []string{first}})
		synctest.Wait()
		require.Equal(t, 1, b.scrapes("coderd-0:2112", outcomePushFailed))
		require.Contains(t, b.Warnings()[0], "push to agentstatsd")
	})
}

func TestOptions(t *testing.T) {
	for want, opts := range map[string]Options{
		"URLs: want at least 1, got none":                           {},
		"interval: want 1s to 1h, got 1ms":                          {URLs: []string{first}, Interval: time.Millisecond},
		"timeout: want above 0 and at most the interval of 15s":     {URLs: []string{first}, Timeout: time.Minute},
		"lookup interval: want at least 1s, got 1ns":                {URLs: []string{first}, LookupInterval: 1},
		"max body bytes: want at least 1, got -1":                   {URLs: []string{first}, MaxBodyBytes: -1},
		"max message bytes: want at least 4096, got 5":              {URLs: []string{first}, MaxMessageBytes: 5},
		"max targets: want at least one for each of 2 URLs, got 1":  {URLs: []string{first, second}, MaxTargets: 1},
		"URLs: coderd-0:2112 is there twice":                        {URLs: []string{first, "http://CODERD-0:2112/metrics"}},
		"URLs: want http://host:2112/, https://host:2112/ or dns+h": {URLs: []string{"ftp://secret"}},
		"URLs: want a name after dns+, got 10.0.0.1:80":             {URLs: []string{"dns+http://10.0.0.1"}},
	} {
		_, err := New(nil, opts, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, "targets options: "+want)
		require.NotContains(t, err.Error(), "secret")
	}
	require.NoError(t, CheckURL("dns+https://coderd"))
}
