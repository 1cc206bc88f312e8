package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An attack is one kind of abuse, by peers that a service cannot choose. It runs
// in a process of its own with the lowest priority, as an attacker has a machine
// of its own.
type attack struct {
	name string
	// prepare, if there is one, runs before the time of the attack.
	prepare func(ctx context.Context, at target) error
	// run attacks until ctx ends, and returns how much it did. 0 is an error of the
	// test, as an attack that cannot begin shows nothing.
	run func(ctx context.Context, at target) (did int64, err error)
	// idle is true of an attack that is to cost nearly nothing.
	idle bool
}

// target is the service that an attacker sees.
type target struct {
	GRPC, HTTP string
	// Token is coderd's, for those that have it.
	Token string
	// Agents is how many registered agents' tokens the attacker has: those of
	// First and after. Each attack has others, as the service remembers.
	First, Agents int
	// TLS and Web say that the listeners of gRPC and of HTTP have TLS.
	TLS, Web bool
	// Source is the address that the attack comes from: each has another one, as
	// the service remembers.
	Source string
}

// attackerDialer dials as an attacker.
var attackerDialer = &net.Dialer{Timeout: 5 * time.Second}

// campaign is attacks on one service, one after another.
type campaign struct {
	name    string
	args    func(t *testing.T) []string
	target  target
	attacks []attack
	// limit of resident bytes, whatever the attack.
	limit int64
	// password of the scraper; empty: none is needed.
	password string
}

const (
	strangersLimit = 200 << 20
	agentsLimit    = 300 << 20
)

var campaigns = []campaign{
	{name: "strangers", attacks: strangers, limit: strangersLimit},
	{name: "agents", attacks: agents, limit: agentsLimit, target: target{Agents: 20}, args: shortTTL},
	{name: "one owner", attacks: owners, limit: agentsLimit, target: target{Agents: 20}, args: littleRoom},
	{name: "scrapers", attacks: scrapers, limit: strangersLimit, target: target{Agents: 20}, args: shortTTL},
	{name: "scrapers over TLS", attacks: scrapersTLS, limit: strangersLimit, args: webTLS, target: target{Web: true, Agents: 20}},
	{name: "guessers", attacks: guessers, limit: strangersLimit, args: webPassword, password: goodPassword},
	{name: "coderds", attacks: coderds, limit: agentsLimit},
}

// shortTTL lets what attackers leave behind expire within the test.
func shortTTL(*testing.T) []string { return []string{"--report-interval", "2s", "--series-ttl", "5s"} }

// littleRoom is room for fewer series than one owner's agents try to have.
func littleRoom(t *testing.T) []string {
	return append(shortTTL(t), "--max-series", "4000", "--max-families", "400")
}

// TestAttacks attacks the service as strangers, agents, scrapers and a coderd
// that is wrong. Meanwhile a well-behaved agent reports and a Prometheus
// scrapes: nothing of theirs may fail. With -soak each attack takes 20 s, and the
// agent's acks are timed.
func TestAttacks(t *testing.T) {
	parallel(t)
	lanes := make(chan struct{}, attackedAtOnce)
	for _, c := range campaigns {
		t.Run(c.name, func(t *testing.T) {
			parallel(t)
			takePlace(t, lanes)
			takePlace(t, places)
			args := []string{"--pprof-address", freeAddr()}
			if c.args != nil {
				args = append(args, c.args(t)...)
			}
			v := newVictim(t, c, args)
			for _, a := range c.attacks {
				t.Run(a.name, func(t *testing.T) { v.suffer(t, a, c.limit) })
			}
			v.endWell(t)
		})
	}
}

// Times of an attack, in make test and in make soak. The shorter quiet time is that of
// a scrape and an ack.
func attackTimes() (quiet, during time.Duration) {
	if *soak {
		return 10 * time.Second, 20 * time.Second
	}
	return 0, time.Second
}

// attackedAtOnce is how many services are attacked at the same time, of those that run
// beside others.
const attackedAtOnce = 2

// suffer measures one attack.
func (v *victim) suffer(t *testing.T, a attack, limit int64) {
	quietTime, attackTime := attackTimes()
	v.registerAttackers(t)
	before := v.inUse(t)
	residentBefore := v.resident()
	quiet := v.observe(t, time.After(quietTime))
	require.Empty(t, quiet.failures, "before the attack")

	v.attacks++
	v.target.Source = fmt.Sprintf("127.0.1.%d", v.attacks)
	attacker := startAttacker(t, a, v.target, attackTime)
	under := v.observe(t, attacker.ended)
	did := attacker.result(t)
	t.Logf("%s; resident %d MB at most, %.2f cores; acks p99 %s, quiet %s; %d scrapes, p99 %s, quiet %s", did, under.resident>>20, under.cores,
		under.acks.p99(), quiet.acks.p99(), len(under.scrapes), under.scrapes.p99(), quiet.scrapes.p99())

	require.Empty(t, under.failures, "what failed for the agent and the scraper that behave")
	require.NotEmpty(t, under.acks)
	require.NotEmpty(t, under.scrapes)
	require.Less(t, under.resident, limit, "resident bytes")
	if *soak {
		// Below some 20 ms the scheduler of two cores is what is measured.
		require.LessOrEqual(t, under.acks.p99(), max(3*quiet.acks.p99(), 20*time.Millisecond), "p99 of the acks, three times %s", quiet.acks.p99())
		if a.idle {
			require.LessOrEqual(t, under.cores, 0.3+quiet.cores, "cores that the flood took")
		}
	}
	v.recover(t, before, residentBefore)
}

// recover waits until what the attack took is given back: heap and stacks in use
// within a minute, with -soak resident memory within five.
func (v *victim) recover(t *testing.T, before, resident int64) {
	const slack = 24 << 20
	await(t, time.Minute, "heap and stacks in use are back", func() (bool, string) {
		now := v.inUse(t)
		return now < before+slack, fmt.Sprintf("%d MB in use, %d MB before", now>>20, before>>20)
	})
	if !*soak {
		return
	}
	await(t, 5*time.Minute, "resident memory is back", func() (bool, string) {
		now := v.resident()
		return now < resident+2*slack, fmt.Sprintf("%d MB resident, %d MB before", now>>20, resident>>20)
	})
}

// pollInterval is the time between two looks of await.
const pollInterval = 200 * time.Millisecond

// await polls until done says so.
func await(t *testing.T, limit time.Duration, what string, done func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, state := done()
		if ok {
			return
		}
		require.True(t, time.Now().Before(deadline), "%s: not within %s: %s", what, limit, state)
		time.Sleep(pollInterval)
	}
}

// Variables that make the test's binary an attacker instead.
const (
	attackVariable = "INTEGRATION_ATTACK"
	targetVariable = "INTEGRATION_TARGET"
	timeVariable   = "INTEGRATION_TIME"
)

// attacker is the process that attacks.
type attacker struct {
	cmd    *exec.Cmd
	stdout *lockedBuffer
	stderr *lockedBuffer
	ended  chan time.Time // closed when it has ended
	err    error          // how, then
}

func startAttacker(t *testing.T, a attack, at target, d time.Duration) *attacker {
	t.Helper()
	encoded, err := json.Marshal(at)
	require.NoError(t, err)
	p := &attacker{cmd: exec.Command(os.Args[0]), stdout: new(lockedBuffer), stderr: new(lockedBuffer), ended: make(chan time.Time)}
	if *soak {
		// In life the attacker has a machine of its own. Where latencies are looked at
		// it has what the service and those who behave leave of this one.
		p.cmd = exec.Command("chrt", "--idle", "0", os.Args[0])
	}
	p.cmd.Env = append(os.Environ(), attackVariable+"="+a.name, targetVariable+"="+string(encoded), timeVariable+"="+d.String())
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	require.NoError(t, p.cmd.Start())
	kill := time.AfterFunc(d+time.Minute, func() { _ = p.cmd.Process.Kill() })
	go func() {
		defer close(p.ended)
		defer kill.Stop()
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// result returns what the attacker, which has ended, says that it did.
func (p *attacker) result(t *testing.T) string {
	t.Helper()
	<-p.ended
	require.NoError(t, p.err, "the attacker: %s", p.stderr.tail(4<<10))
	return strings.TrimSpace(p.stdout.tail(4 << 10))
}

// beAttacker is main of the attacker.
func beAttacker(name string) int {
	var at target
	d, err := time.ParseDuration(os.Getenv(timeVariable))
	if err == nil {
		err = json.Unmarshal([]byte(os.Getenv(targetVariable)), &at)
	}
	if at.Source != "" {
		attackerDialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(at.Source)}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	for _, c := range campaigns {
		for _, a := range c.attacks {
			if a.name != name {
				continue
			}
			did, err := a.runFor(d, at)
			fmt.Printf("%s: did it %d times", name, did)
			if err != nil || did == 0 {
				fmt.Fprintf(os.Stderr, "did it %d times: %v\n", did, err)
				return 1
			}
			return 0
		}
	}
	fmt.Fprintf(os.Stderr, "no attack is named %q\n", name)
	return 2
}

// runFor prepares the attack, and attacks for d.
func (a attack) runFor(d time.Duration, at target) (int64, error) {
	if a.prepare != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := a.prepare(ctx, at); err != nil {
			return 0, fmt.Errorf("prepare: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return a.run(ctx, at)
}

// endWell stops the service, which must have lived and logged little.
func (v *victim) endWell(t *testing.T) {
	v.leave()
	log := v.service.log.tail(64 << 20)
	require.NotContains(t, log, "panic")
	lines := strings.Count(log, "\n")
	require.Less(t, lines, 2000, "lines in the log: %s", log[:min(len(log), 4<<10)])
	_, err := v.service.stop(syscall.SIGTERM)
	require.NoError(t, err)
}

// tempFile writes a file for the service.
func tempFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	return path
}

// closeAll closes what an attack left open.
func closeAll[C io.Closer](list []C) {
	for _, c := range list {
		_ = c.Close()
	}
}
