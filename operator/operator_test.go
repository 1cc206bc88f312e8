package operator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/serpent"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/internal/freeport"
	pb "github.com/coder/agentstatsd/proto/agentstats/v1"
)

func TestStatus(t *testing.T) {
	a, b, c := replicaStatus("a"), replicaStatus("b"), replicaStatus("c")
	a.Leads = true
	b.Ready = false
	b.Components = []*pb.Component{{Name: "database", Reason: "is away\x1b[2J"}, {Name: "fleet", Ready: true}}
	b.Warnings = []string{"a file was not taken"}
	used := 95.0
	b.Limits = []*pb.Limit{{Name: "series", Limit: 100, Used: &used}, {Name: "agents", Limit: 200, Used: &used}, {Name: "bytes", Limit: 1}}
	first := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{b, asSeen(a, 4), asSeen(c, 9)}}, nil)
	second := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{a, asSeen(b, 3), asSeen(c, 7)}}, nil)
	r := run(t, "status", "--address", addressesOf(first, second))
	require.NoError(t, r.err)
	require.Equal(t, `REPLICA  STATE         VERSION  UP    AGENTS  CONNECTED  SERIES  MEMORY              CORES  PENDING  SCRAPED  AS OF
a        ready, leads  v1.2.3   2d2h  5       2          70      512 MiB of 2.0 GiB  0.25   3        3h ago   now
b        not ready     v1.2.3   2d2h  5       2          70      512 MiB of 2.0 GiB  0.25   3        3h ago   now
c        not ready     v1.2.3         0       0          0       0 B                 0.00   0        never    7s ago

b: database is not ready: is away\x1b[2J
b: a file was not taken
b: series: 95 of 100 are used, 95 %
`, r.stdout)
	require.Empty(t, r.stderr)

	r = run(t, "status", "--json", "--address", first.address)
	require.NoError(t, r.err)
	var d struct {
		Asked []map[string]string
		// The names of the contract.
		Answer struct {
			Replicas []struct {
				ID         string  `json:"id"`
				AgeSeconds float64 `json:"age_seconds"`
				Draining   *bool
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &d))
	require.Equal(t, []map[string]string{
		{"address": first.address, "replica": "b", "id": "id-b", "error": ""},
		{"address": "", "replica": "a", "id": "id-a", "error": "no address was given"},
		{"address": "", "replica": "c", "id": "id-c", "error": "no address was given"},
	}, d.Asked)
	require.Len(t, d.Answer.Replicas, 3)
	require.Equal(t, "id-a", d.Answer.Replicas[0].ID)
	require.Equal(t, 4.0, d.Answer.Replicas[0].AgeSeconds)
	require.NotNil(t, d.Answer.Replicas[0].Draining, "also what is false is there")
}

// An answer of a part of the replicas is printed, and ends with an exit code of its own.
func TestPartOfTheReplicas(t *testing.T) {
	there := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{replicaStatus("a")}}, nil)
	away := freeport.Addr()
	r := run(t, "status", "--address", there.address, "--address", away)
	require.EqualError(t, r.err, "1 of 2 replicas have not answered: "+away+": nobody listens there: start the service, or give its --grpc-address as --address")
	require.Equal(t, exitPartial, ExitCode(r.err))
	require.Contains(t, r.stdout, "a        ready")

	r = run(t, "status", "--address", away)
	require.ErrorContains(t, r.err, "no replica could be asked: "+away+": nobody listens there")
	require.Equal(t, exitNotAsked, ExitCode(r.err))
	require.Empty(t, r.stdout)
}

// Two addresses of one process are one replica.
func TestOneReplicaIsAskedOnce(t *testing.T) {
	for _, id := range []string{"id-a", ""} { // without replicas there is no id
		self := replicaStatus("a")
		self.Id = id
		one := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{self}, agents: []*pb.AgentSummary{{Id: "1", Refused: 4}}}, nil)
		same := startFake(t, "127.0.0.1", &fake{statuses: one.statuses, agents: one.agents}, nil)
		r := run(t, "agents", "--json", "--address", addressesOf(one, same))
		require.NoError(t, r.err)
		require.Contains(t, r.stdout, `"refused": 4`)
		require.Equal(t, 1, strings.Count(r.stdout, `"address"`))
	}
}

func TestAgents(t *testing.T) {
	series := 30.0
	now := time.Now()
	one := startFake(t, "127.0.0.1", &fake{agents: []*pb.AgentSummary{
		{Id: "1", Owner: "ada", Workspace: "dev", Name: "main", Template: "docker", Status: "connected", Lifecycle: "ready", Replica: "b", Refused: 1, LastSeenAt: timestamppb.New(now.Add(-5 * time.Hour))},
		{Id: "2", Owner: "ada", Workspace: "new", Name: "main", Template: "docker", Status: "connecting"},
		{Id: "3", Owner: "cem", Workspace: "x", Name: "main", Template: "k8s", Status: "timeout"},
	}}, nil)
	two := startFake(t, "127.0.0.1", &fake{agents: []*pb.AgentSummary{
		{Id: "1", Owner: "ada", Workspace: "dev", Name: "main", Template: "docker", Status: "connected", Lifecycle: "ready", Replica: "b", Series: &series, Refused: 2, LastSeenAt: timestamppb.New(now.Add(-3*time.Hour - 30*time.Second))},
		{Id: "2", Owner: "ada", Workspace: "new", Name: "main", Template: "docker", Status: "connecting"},
		{Id: "4", Owner: "bea", Workspace: "\u202edlo", Name: "main", Template: "k8s", Status: "timeout"},
	}}, nil)
	r := run(t, "agents", "--owner", "o", "--template", "t", "--status", "connected", "--query", "q", "--address", addressesOf(one, two))
	require.NoError(t, r.err)
	require.Equal(t, `AGENT               TEMPLATE  STATUS      LIFECYCLE  REPLICA  SERIES  REFUSED  SEEN
ada/dev.main        docker    connected   ready      b        30      3        3h ago
ada/new.main        docker    connecting                              0
bea/\u202edlo.main  k8s       timeout                                 0
cem/x.main          k8s       timeout                                 0
`, r.stdout)
	require.Len(t, one.searches, 2, "two pages")
	for _, search := range one.searches {
		require.Equal(t, []string{"o", "t", "connected", "q"}, []string{search.GetOwner(), search.GetTemplate(), search.GetStatus(), search.GetQuery()})
	}
	require.Equal(t, "2", one.searches[1].GetPageToken())

	r = run(t, "agents", "--owner", "nobody", "--address", one.address)
	require.EqualError(t, r.err, "owner: want somebody")
	require.Equal(t, exitFault, ExitCode(r.err))
	r = run(t, "agents", "--status", "sleeping")
	require.ErrorContains(t, r.err, "sleeping")
}

// Who is dialed, by which name, and with TLS or not.
func TestResolve(t *testing.T) {
	lookup := func(_ context.Context, _, host string) ([]netip.Addr, error) {
		require.Equal(t, "stats.example.com", host)
		return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2"), netip.MustParseAddr("10.0.0.1")}, nil
	}
	for target, want := range map[string]string{
		"stats.example.com":            "10.0.0.1:2113 10.0.0.2:2113",
		"dns:///stats.example.com:99":  "10.0.0.1:99 10.0.0.2:99",
		"127.0.0.1":                    "127.0.0.1:2113",
		"::1":                          "[::1]:2113",
		"[::1]":                        "[::1]:2113",
		"[::1]:99":                     "[::1]:99",
		"stats.example.com:x":          `--address "stats.example.com:x": want host:port or dns:///host:port: port "x" is not a number from 0 to 65535`,
		":99":                          `--address ":99": want host:port or dns:///host:port, got no host`,
		"https://stats.example.com:99": `--address "https://stats.example.com:99": want host:port or dns:///host:port`,
	} {
		c := &connection{targets: []string{target}, lookup: lookup}
		all, err := c.resolve(t.Context())
		var dialed []string
		for _, a := range all {
			dialed = append(dialed, a.dial)
			opts, err := c.dialOptions(a, fakeToken)
			require.NoError(t, err)
			require.Equal(t, a.loopback, opts.Plaintext)
			if !a.loopback {
				require.Equal(t, "stats.example.com", opts.TLS.ServerName)
			}
		}
		if err != nil {
			require.EqualError(t, err, want)
			continue
		}
		require.Equal(t, want, strings.Join(dialed, " "), target)
	}
	many := make([]netip.Addr, maxReplicas+1)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
	}
	c := &connection{targets: []string{"many"}, lookup: func(context.Context, string, string) ([]netip.Addr, error) { return many, nil }}
	_, err := c.resolve(t.Context())
	require.EqualError(t, err, "--address: want at most 64 addresses, got 65")
}

// A name with addresses of two families has replicas that listen on one of them.
func TestOtherFamilyIsNotMissing(t *testing.T) {
	self := replicaStatus("a")
	r := func(dial string, err error) *replica {
		return &replica{address: address{target: "x", dial: dial}, self: self, err: err}
	}
	a := &asked{reached: []*replica{r("10.0.0.1:1", nil)}}
	require.True(t, a.isOtherFamily(r("[::1]:1", os.ErrNotExist)))
	require.False(t, a.isOtherFamily(r("10.0.0.2:1", os.ErrNotExist)))
	a.reached = append(a.reached, r("[::2]:1", nil))
	require.False(t, a.isOtherFamily(r("[::1]:1", os.ErrNotExist)))
}

// The token is that of the service's own variables, unless a flag names another one.
func TestTokenPath(t *testing.T) {
	environ := serpent.Environ{{Name: envOperatorToken, Value: "operator"}, {Name: envCoderdToken, Value: "coderd"}}
	for _, c := range []struct {
		connection
		environ serpent.Environ
		want    string
	}{
		{connection{dataDir: "d"}, nil, "d/coderd-token"},
		{connection{dataDir: "d"}, environ, "operator"},
		{connection{dataDir: "d", changes: true}, environ, "coderd"},
		{connection{dataDir: "d", tokenFile: "flag"}, environ, "flag"},
		{connection{dataDir: "d", tokenFile: "flag", changes: true}, environ, "flag"},
	} {
		require.Equal(t, c.want, c.tokenPath(c.environ))
	}
}

// What an error says can be done.
func TestErrorsSayWhatToDo(t *testing.T) {
	cert, caFile := certificate(t)
	secure := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{replicaStatus("a")}}, cert)
	open := startFake(t, "127.0.0.1", &fake{statuses: []*pb.ReplicaStatus{replicaStatus("a")}}, nil)
	old := startFake(t, "127.0.0.1", &fake{}, nil)
	wrong := filepath.Join(t.TempDir(), "wrong")
	require.NoError(t, os.WriteFile(wrong, []byte("0123456789abcdee"), 0o600))
	for _, c := range []struct {
		args, want string
		code       int
	}{
		{"--address " + secure.address + " --ca-file " + caFile + " --server-name stats.example.com", "", 0},
		{"--address " + secure.address, "not --prometheus-address, and --tls or --ca-file where it has a certificate", 2},
		{"--address " + secure.address + " --server-name stats.example.com", "the certificate is not trusted: give --ca-file", 2},
		{"--address " + secure.address + " --ca-file " + caFile, "the certificate is for another name than 127.0.0.1: give --server-name", 2},
		{"--address " + open.address + " --tls", "the service speaks no TLS there", 2},
		{"--address " + open.address + " --tls --plaintext", "--plaintext: want no --tls", 1},
		{"--address " + open.address + " --token-file " + wrong, "is none of the service's: give --token-file", 2},
		{"--address " + open.address + " --token-file nowhere", "give --token-file, the file of the service's --operator-token-file", 2},
		{"--address " + open.address + " --ca-file nowhere", "--ca-file: ", 1},
		{"--address " + old.address, "the service is of an older version", 2},
	} {
		r := run(t, append([]string{"status"}, strings.Fields(c.args)...)...)
		require.Equal(t, c.code, ExitCode(r.err), "%s: %v", c.args, r.err)
		if c.want == "" {
			continue
		}
		require.ErrorContains(t, r.err, c.want, c.args)
		require.NotContains(t, r.err.Error(), "\n")
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m", 61 * time.Second: "1m1s", 2 * time.Hour: "2h",
		2*time.Hour + 3*time.Minute + 4*time.Second: "2h3m", 50 * time.Hour: "2d2h",
	} {
		require.Equal(t, want, span(d))
	}
	require.Equal(t, "0.012s", seconds(0.0123))
	require.Equal(t, "1m5s", seconds(65.4))
}

// certificate makes one for stats.example.com. It is its own authority.
func certificate(t *testing.T) (cert *tls.Certificate, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"stats.example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, caFile
}
