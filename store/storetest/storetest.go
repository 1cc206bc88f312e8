// Package storetest is the contract of a store: what the components rely on,
// whichever database is behind it. SQLite, PostgreSQL and the database in memory
// of the simulation pass the same tests.
package storetest

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/agent"
)

// Store is what the components ask of a database. store.Store is one.
type Store interface {
	Ping(ctx context.Context) error

	Registrations(ctx context.Context, since int64) (agent.Registrations, error)
	EachRegistration(ctx context.Context, page func(agent.Registrations) error) (revision int64, err error)
	ApplyChange(ctx context.Context, basis int64, c agent.Change) (revision int64, err error)
	Removals(ctx context.Context, within time.Duration) ([]agent.Removal, error)

	UpsertMetadata(ctx context.Context, rows []agent.Metadata) (changed []agent.ID, newer []agent.StoredEpoch, err error)
	MetadataWithin(ctx context.Context, ids []agent.ID, limit int) (found []agent.Metadata, left []agent.ID, err error)
	MetadataKeys(ctx context.Context, each func(agent.ID, []string) error) error

	EachState(ctx context.Context, page func([]agent.State) error) (next int64, err error)
	States(ctx context.Context, since int64) (states []agent.State, next int64, err error)
	SaveStates(ctx context.Context, states []agent.State) (newer []agent.StoredEpoch, err error)
	EachSession(ctx context.Context, page func([]agent.SessionRecord) error) (next int64, err error)
	Sessions(ctx context.Context, since int64) (records []agent.SessionRecord, next int64, err error)
	SaveSessions(ctx context.Context, records []agent.SessionRecord) (before []agent.SessionRecord, err error)
	ObserveBuilds(ctx context.Context, builds []agent.ID, at time.Time) (fresh []agent.ID, err error)

	Clock(ctx context.Context) (time.Time, error)
	RecordHeartbeat(ctx context.Context, me agent.Replica, takeover int64) ([]agent.Replica, agent.Lease, error)
	NoteGone(ctx context.Context, replicas []agent.Replica) error
	RemoveReplicas(ctx context.Context, ids []agent.ID) error
	Lease(ctx context.Context) (agent.Lease, error)
	SaveIntervalFactor(ctx context.Context, holder agent.ID, factor float64) error
	ExchangeStatus(ctx context.Context, self agent.ID, status []byte, most, mostBytes int) (others []agent.SavedStatus, stored bool, err error)

	SavePush(ctx context.Context, row agent.PushRow) error
	FoldPushes(ctx context.Context, rows, removed []agent.PushRow) error
	Pushes(ctx context.Context, instances []agent.Instance) ([]agent.PushRow, error)
	PushVersions(ctx context.Context) (map[agent.Instance]int64, error)

	RecordReportWriterHeartbeat(ctx context.Context, writer agent.ID) error
	RemoveReportWriter(ctx context.Context, writer agent.ID) error
	AddReports(ctx context.Context, w agent.ReportWrite) (agent.ReportWritten, error)
	CountReportSums(ctx context.Context) (map[int64]agent.ReportCount, error)
	HasReportSums(ctx context.Context, subscription int64) (bool, error)
	Subscriptions(ctx context.Context) ([]agent.Subscription, error)
	ConfirmSubscriptions(ctx context.Context, writer agent.ID, ids []int64) error
	StartSubscription(ctx context.Context, id int64, self agent.ID, within time.Duration, force bool) (since time.Time, err error)
	OpenSubscription(ctx context.Context, o agent.SubscriptionOpening) (agent.OpenedSubscription, error)
	DeliverReports(ctx context.Context, d agent.Delivery) (*agent.ReportBatch, error)
	ReleaseSubscription(ctx context.Context, id int64, stream agent.ID) error
	ExpireSubscriptions(ctx context.Context, retention time.Duration) ([]agent.ExpiredSubscription, error)

	AcquireTasks(ctx context.Context, holder agent.ID, names []string, prefix string, d time.Duration) (granted []string, counted int, err error)
}

// Options of a Store that the contract depends on.
type Options struct {
	// TouchInterval is after how long a value that is reported again unchanged is
	// written again; 0: each time.
	TouchInterval time.Duration
	// RemovalsKept is how many removals are remembered; 0: at least 10,000.
	RemovalsKept int
	// NamedKept is how many ids of those who were named again are remembered; 0: at least
	// 10,000.
	NamedKept int
}

// Run tests what every database must do. open returns an empty Store that is
// closed when the test ends.
func Run(t *testing.T, open func(testing.TB, Options) Store) {
	t.Run("Registrations", func(t *testing.T) { testRegistrations(t, open(t, Options{})) })
	t.Run("RegistrationsReplaced", func(t *testing.T) { testRegistrationsReplaced(t, open(t, Options{})) })
	t.Run("RegistrationsRemoved", func(t *testing.T) { testRegistrationsRemoved(t, open(t, Options{})) })
	t.Run("RegistrationsIncarnation", func(t *testing.T) { testRegistrationsIncarnation(t, open(t, Options{})) })
	t.Run("RegistrationsLateWrites", func(t *testing.T) { testRegistrationsLateWrites(t, open(t, Options{})) })
	t.Run("RegistrationsNamed", func(t *testing.T) { testRegistrationsNamed(t, open(t, Options{})) })
	t.Run("Removals", func(t *testing.T) { testRemovals(t, open(t, Options{})) })
	t.Run("RegistrationsNamedForgotten", func(t *testing.T) { testRegistrationsNamedForgotten(t, open(t, Options{NamedKept: 1 << 10})) })
	t.Run("RegistrationsAtomic", func(t *testing.T) { testRegistrationsAtomic(t, open(t, Options{})) })
	t.Run("RegistrationsSince", func(t *testing.T) { testRegistrationsSince(t, open(t, Options{})) })
	t.Run("RegistrationsForgotten", func(t *testing.T) { testRegistrationsForgotten(t, open) })
	t.Run("RegistrationsOutdated", func(t *testing.T) { testRegistrationsOutdated(t, open(t, Options{})) })
	t.Run("RegistrationsMany", func(t *testing.T) { testRegistrationsMany(t, open(t, Options{})) })
	t.Run("Metadata", func(t *testing.T) { testMetadata(t, open(t, Options{})) })
	t.Run("MetadataWithin", func(t *testing.T) { testMetadataWithin(t, open(t, Options{})) })
	t.Run("MetadataRejected", func(t *testing.T) { testMetadataRejected(t, open(t, Options{})) })
	t.Run("MetadataLongestKey", func(t *testing.T) { testMetadataLongestKey(t, open(t, Options{})) })
	t.Run("MetadataUnchanged", func(t *testing.T) { testMetadataUnchanged(t, open) })
	t.Run("MetadataOrder", func(t *testing.T) { testMetadataOrder(t, open) })
	t.Run("MetadataLate", func(t *testing.T) { testMetadataLate(t, open(t, Options{})) })
	t.Run("Pages", func(t *testing.T) { testPages(t, open(t, Options{})) })
	t.Run("States", func(t *testing.T) { testStates(t, open(t, Options{})) })
	t.Run("StatesOrder", func(t *testing.T) { testStatesOrder(t, open(t, Options{})) })
	t.Run("StatesSince", func(t *testing.T) { testStatesSince(t, open(t, Options{})) })
	t.Run("Startup", func(t *testing.T) { testStartup(t, open(t, Options{})) })
	t.Run("AppHealth", func(t *testing.T) { testAppHealth(t, open(t, Options{})) })
	t.Run("NewerEpochs", func(t *testing.T) { testNewerEpochs(t, open) })
	t.Run("FirstStays", func(t *testing.T) { testFirstStays(t, open(t, Options{})) })
	t.Run("Sessions", func(t *testing.T) { testSessions(t, open(t, Options{})) })
	t.Run("SessionsBefore", func(t *testing.T) { testSessionsBefore(t, open(t, Options{})) })
	t.Run("SessionsSince", func(t *testing.T) { testSessionsSince(t, open(t, Options{})) })
	t.Run("Pushes", func(t *testing.T) { testPushes(t, open(t, Options{})) })
	t.Run("PushesFolded", func(t *testing.T) { testPushesFolded(t, open(t, Options{})) })
	t.Run("PushesOutdated", func(t *testing.T) { testPushesOutdated(t, open(t, Options{})) })
	t.Run("Replicas", func(t *testing.T) { testReplicas(t, open(t, Options{})) })
	t.Run("Lease", func(t *testing.T) { testLease(t, open(t, Options{})) })
	t.Run("IntervalFactor", func(t *testing.T) { testIntervalFactor(t, open(t, Options{})) })
	t.Run("Statuses", func(t *testing.T) { testStatuses(t, open(t, Options{})) })
	t.Run("Tasks", func(t *testing.T) { testTasks(t, open(t, Options{})) })
	t.Run("Builds", func(t *testing.T) { testBuilds(t, open(t, Options{})) })
	t.Run("Reports", func(t *testing.T) { testReports(t, open(t, Options{})) })
	t.Run("ReportsWrittenOnce", func(t *testing.T) { testReportsWrittenOnce(t, open(t, Options{})) })
	t.Run("ReportsRefused", func(t *testing.T) { testReportsRefused(t, open(t, Options{})) })
	t.Run("ReportsAddedOnce", func(t *testing.T) { testReportsAddedOnce(t, open(t, Options{})) })
	t.Run("ReportsOfManyInstances", func(t *testing.T) { testReportsOfManyInstances(t, open(t, Options{})) })
	t.Run("SubscriptionStarts", func(t *testing.T) { testSubscriptionStarts(t, open(t, Options{})) })
	t.Run("SubscriptionStreams", func(t *testing.T) { testSubscriptionStreams(t, open(t, Options{})) })
	t.Run("SubscriptionDelivers", func(t *testing.T) { testSubscriptionDelivers(t, open(t, Options{})) })
	t.Run("LargeSubscriptionExpires", func(t *testing.T) { testLargeSubscriptionExpires(t, open(t, Options{})) })
	t.Run("BatchBytes", func(t *testing.T) { testBatchBytes(t, open(t, Options{})) })
	t.Run("SubscriptionRestored", func(t *testing.T) { testSubscriptionRestored(t, open(t, Options{})) })
	t.Run("NumberGivenTwice", func(t *testing.T) { testNumberGivenTwice(t, open(t, Options{})) })
	t.Run("SubscriptionExpires", func(t *testing.T) { testSubscriptionExpires(t, open(t, Options{})) })
	t.Run("Context", func(t *testing.T) { testContext(t, open(t, Options{})) })
}

// statementRows is how many rows or ids one statement of store.Store has at most.
const statementRows = 1000

// id returns the UUID that ends in n.
func id(n byte) agent.ID { return agent.ID{0: 0xa, 15: n} }

func registration(agentID, workspaceID agent.ID) agent.Registration {
	created := time.Date(2026, 3, 1, 10, 0, 0, 123456789, time.UTC)
	return agent.Registration{
		ID:                agentID,
		Name:              "main",
		CreatedAt:         created,
		ConnectionTimeout: 2 * time.Minute,
		TokenHash:         [32]byte{1, 2, 31: 3},
		Workspace: agent.Workspace{
			ID:            workspaceID,
			Name:          "dev",
			OwnerID:       id(200),
			OwnerUsername: "zoë",
			Template:      agent.Template{ID: id(201), Name: "docker", Version: "v3"},
			Organization:  "default",
			Build:         agent.Build{ID: id(202), CreatedAt: created.Add(-time.Minute), Transition: "start", IsPrebuild: true},
		},
		Apps: []agent.App{
			{ID: id(203), Slug: "code", DisplayName: "VS Code", Health: agent.AppHealthHealthy},
			{ID: id(204), Slug: "term", DisplayName: "Terminal \"1\"", Health: agent.AppHealthDisabled},
		},
		MetadataKeys: []string{"cpu", "disk usage"},
		Parent:       id(205),
		Observed: agent.Observation{
			At: created.Add(time.Minute), Status: agent.StatusConnected,
			Lifecycle: agent.Lifecycle{State: agent.LifecycleReady, ChangedAt: created.Add(30 * time.Second)},
			Network:   agent.Network{NodeID: 1<<63 + 5, PreferredRegion: 1, Regions: []agent.Region{{ID: 1, Name: "Zürich", Latency: 12345678}}},
		},
	}
}

// requireWhole fails if a field of the struct is zero: the contract would not notice
// that a database forgets it.
func requireWhole(t *testing.T, v any, except ...string) {
	t.Helper()
	fields := reflect.ValueOf(v)
	for i := range fields.NumField() {
		if name := fields.Type().Field(i).Name; !slices.Contains(except, name) {
			require.False(t, fields.Field(i).IsZero(), "give %s a value", name)
		}
	}
}

func register(t testing.TB, s Store, agents ...agent.ID) {
	t.Helper()
	var c agent.Change
	for _, a := range agents {
		c.Agents = append(c.Agents, registration(a, id(100)))
	}
	apply(t, s, c)
}

// apply writes a change on the newest revision.
func apply(t testing.TB, s Store, c agent.Change) {
	t.Helper()
	_, err := s.ApplyChange(t.Context(), registrations(t, s).Revision, c)
	require.NoError(t, err)
}

// registrations returns all registrations.
func registrations(t testing.TB, s Store) agent.Registrations {
	t.Helper()
	r, err := registrationsSince(t, s, 0)
	require.NoError(t, err)
	require.True(t, r.Complete)
	return r
}

// registrationsSince returns what changed, without the incarnations.
func registrationsSince(t testing.TB, s Store, since int64) (agent.Registrations, error) {
	t.Helper()
	r, err := s.Registrations(t.Context(), since)
	for i := range r.Agents {
		r.Agents[i].Incarnation = 0
	}
	return r, err
}

func row(a agent.ID, key, value string, epoch, sequence int64) agent.Metadata {
	return agent.Metadata{
		Agent: a, Key: key, Value: value,
		CollectedAt: time.Unix(epoch, sequence).UTC(),
		Order:       agent.Order{Epoch: epoch, Sequence: sequence},
	}
}

func upsert(t testing.TB, s Store, rows []agent.Metadata) {
	t.Helper()
	_, _, err := s.UpsertMetadata(t.Context(), rows)
	require.NoError(t, err)
}

// metadataKeys returns the keys of agents that declare none.
func metadataKeys(t testing.TB, s Store) map[agent.ID][]string {
	t.Helper()
	keys := make(map[agent.ID][]string)
	require.NoError(t, s.MetadataKeys(t.Context(), func(id agent.ID, of []string) error {
		keys[id] = of
		return nil
	}))
	return keys
}

func saveStates(t testing.TB, s Store, states []agent.State) {
	t.Helper()
	_, err := s.SaveStates(t.Context(), states)
	require.NoError(t, err)
}

func saveSessions(t testing.TB, s Store, records []agent.SessionRecord) {
	t.Helper()
	_, err := s.SaveSessions(t.Context(), records)
	require.NoError(t, err)
}

func testMetadata(t *testing.T, s Store) {
	register(t, s, id(1), id(2), id(3))
	upsert(t, s, nil)

	a := row(id(1), "a", "line\nzoë \U0001F600", 1, 1)
	b := row(id(1), "b", "", 1, 1)
	b.Error = "exit status 1"
	c := row(id(2), "a", "x", 1, 1)
	c.CollectedAt = time.Time{}
	upsert(t, s, []agent.Metadata{c, b, a})

	found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(2), id(9), id(1), id(2), id(3)}, 1<<30)
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{a, b, c}, found)
	found, _, err = s.MetadataWithin(t.Context(), []agent.ID{id(3)}, 1<<30)
	require.NoError(t, err)
	require.Empty(t, found)
	found, _, err = s.MetadataWithin(t.Context(), nil, 1<<30)
	require.NoError(t, err)
	require.Empty(t, found)

	require.Empty(t, metadataKeys(t, s), "they declare theirs")
	undeclared := registrations(t, s).Agents
	for i := range undeclared {
		undeclared[i].MetadataKeys = nil
	}
	apply(t, s, agent.Change{Agents: undeclared})
	require.Equal(t, map[agent.ID][]string{id(1): {"a", "b"}, id(2): {"a"}}, metadataKeys(t, s))

	// As many agents as one query names, and more.
	many := []agent.ID{id(1)}
	for range statementRows - 2 {
		many = append(many, uuid.New())
	}
	found, _, err = s.MetadataWithin(t.Context(), append(many, id(2)), 1<<30)
	require.NoError(t, err)
	require.Equal(t, []agent.Metadata{a, b, c}, found)
	_, _, err = s.MetadataWithin(t.Context(), append(many, id(2), id(3)), 1<<30)
	require.ErrorContains(t, err, "read metadata: want at most 1000 agents, got 1001")
}

func testMetadataRejected(t *testing.T, s Store) {
	register(t, s, id(1))
	good := row(id(1), "a", "1", 1, 1)
	for name, bad := range map[string]agent.Metadata{
		"unknown agent":     row(id(2), "a", "1", 1, 1),
		"time out of range": {Agent: id(1), Key: "b", CollectedAt: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		_, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{good, bad, good})
		require.ErrorIs(t, err, agent.ErrRejected, name)
		require.ErrorContains(t, err, "upsert metadata: ", name)
		found, _, err := s.MetadataWithin(t.Context(), []agent.ID{id(1), id(2)}, 1<<30)
		require.NoError(t, err)
		require.Empty(t, found, "%s: one transaction", name)
	}
	changed, _, err := s.UpsertMetadata(t.Context(), []agent.Metadata{good, good, row(id(1), "b", "1", 1, 1)})
	require.NoError(t, err)
	require.Equal(t, []agent.ID{id(1), id(1)}, changed)
}

// Every method returns the error of a context that has ended, which is not a
// refusal.
func testContext(t *testing.T, s Store) {
	register(t, s, id(1))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	state := agent.State{Agent: id(1), LifecycleOrder: agent.Order{Epoch: 1}}
	calls := map[string]func() error{
		"Ping": func() error { return s.Ping(ended) },
		"UpsertMetadata": func() error {
			_, _, err := s.UpsertMetadata(ended, []agent.Metadata{row(id(1), "a", "1", 1, 1)})
			return err
		},
		"ApplyChange": func() error {
			_, err := s.ApplyChange(ended, 2, agent.Change{RemovedAgents: []agent.ID{id(1)}})
			return err
		},
		"SaveStates": func() error { _, err := s.SaveStates(ended, []agent.State{state}); return err },
		"SaveSessions": func() error {
			_, err := s.SaveSessions(ended, []agent.SessionRecord{{Agent: id(1), Epoch: 1}})
			return err
		},
		"SavePush":        func() error { return s.SavePush(ended, push(1, "x")) },
		"FoldPushes":      func() error { return s.FoldPushes(ended, []agent.PushRow{push(1, "x")}, nil) },
		"Pushes":          func() error { _, err := s.Pushes(ended, nil); return err },
		"PushVersions":    func() error { _, err := s.PushVersions(ended); return err },
		"ObserveBuilds":   func() error { _, err := s.ObserveBuilds(ended, []agent.ID{id(1)}, time.Unix(1, 0)); return err },
		"RecordHeartbeat": func() error { _, _, err := s.RecordHeartbeat(ended, agent.Replica{ID: id(1)}, -1); return err },
		"Clock":           func() error { _, err := s.Clock(ended); return err },
		"NoteGone":        func() error { return s.NoteGone(ended, []agent.Replica{{ID: id(1)}}) },
		"RemoveReplicas":  func() error { return s.RemoveReplicas(ended, []agent.ID{id(1)}) },
		"MetadataWithin":  func() error { _, _, err := s.MetadataWithin(ended, []agent.ID{id(1)}, 1); return err },
		"MetadataKeys":    func() error { return s.MetadataKeys(ended, func(agent.ID, []string) error { return nil }) },
		"Registrations":   func() error { _, err := s.Registrations(ended, 0); return err },
		"States":          func() error { _, _, err := s.States(ended, 0); return err },
		"Sessions":        func() error { _, _, err := s.Sessions(ended, 0); return err },

		"EachRegistration": func() error {
			_, err := s.EachRegistration(ended, func(agent.Registrations) error { return nil })
			return err
		},
		"EachState": func() error { _, err := s.EachState(ended, func([]agent.State) error { return nil }); return err },
		"EachSession": func() error {
			_, err := s.EachSession(ended, func([]agent.SessionRecord) error { return nil })
			return err
		},

		"RecordReportWriterHeartbeat": func() error { return s.RecordReportWriterHeartbeat(ended, id(1)) },
		"RemoveReportWriter":          func() error { return s.RemoveReportWriter(ended, id(1)) },
		"AddReports":                  func() error { _, err := s.AddReports(ended, agent.ReportWrite{Sequence: 1}); return err },
		"CountReportSums":             func() error { _, err := s.CountReportSums(ended); return err },
		"HasReportSums":               func() error { _, err := s.HasReportSums(ended, 1); return err },
		"Subscriptions":               func() error { _, err := s.Subscriptions(ended); return err },
		"ConfirmSubscriptions":        func() error { return s.ConfirmSubscriptions(ended, id(1), []int64{1}) },
		"StartSubscription":           func() error { _, err := s.StartSubscription(ended, 1, id(1), 0, false); return err },
		"OpenSubscription": func() error {
			_, err := s.OpenSubscription(ended, agent.SubscriptionOpening{Name: "a", Max: 1, Incarnation: 1})
			return err
		},
		"DeliverReports":      func() error { _, err := s.DeliverReports(ended, agent.Delivery{}); return err },
		"ReleaseSubscription": func() error { return s.ReleaseSubscription(ended, 1, id(1)) },
		"ExpireSubscriptions": func() error { _, err := s.ExpireSubscriptions(ended, 0); return err },
	}
	names := slices.Sorted(maps.Keys(calls))

	for _, name := range names {
		err := calls[name]()
		require.ErrorIs(t, err, context.Canceled, name)
		require.NotErrorIs(t, err, agent.ErrRejected, name)
		require.NotErrorIs(t, err, agent.ErrStoreDown, name)
	}
	// Nothing of it was written, and the connections are still good.
	require.NoError(t, s.Ping(t.Context()))
	require.Len(t, registrations(t, s).Agents, 1)
	require.Empty(t, metadataKeys(t, s))
	pushes, err := s.Pushes(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, pushes)
	replicas, _, err := s.RecordHeartbeat(t.Context(), agent.Replica{ID: id(2)}, -1)
	require.NoError(t, err)
	require.Len(t, replicas, 1)
}

// ID returns the UUID that ends in n, which the tests of a store name agents,
// workspaces and builds by.
func ID(n byte) agent.ID { return id(n) }

// Registration returns an agent in a workspace, with all fields set.
func Registration(agentID, workspaceID agent.ID) agent.Registration {
	return registration(agentID, workspaceID)
}

// Register registers agents, in the workspace with the ID 100.
func Register(t testing.TB, s Store, agents ...agent.ID) {
	t.Helper()
	register(t, s, agents...)
}

// Apply writes a change on the newest revision.
func Apply(t testing.TB, s Store, c agent.Change) {
	t.Helper()
	apply(t, s, c)
}

// Registrations returns all registrations.
func Registrations(t testing.TB, s Store) agent.Registrations {
	t.Helper()
	return registrations(t, s)
}

// Row returns a value of metadata, collected when its order says.
func Row(a agent.ID, key, value string, epoch, sequence int64) agent.Metadata {
	return row(a, key, value, epoch, sequence)
}

// SaveStates writes states.
func SaveStates(t testing.TB, s Store, states []agent.State) {
	t.Helper()
	saveStates(t, s, states)
}

// SaveSessions writes records of sessions.
func SaveSessions(t testing.TB, s Store, records []agent.SessionRecord) {
	t.Helper()
	saveSessions(t, s, records)
}

// Upsert writes metadata.
func Upsert(t testing.TB, s Store, rows []agent.Metadata) {
	t.Helper()
	upsert(t, s, rows)
}

// Push returns the row of a coderd instance.
func Push(n byte, data string) agent.PushRow { return push(n, data) }

// Pushes returns the rows of all coderd instances.
func Pushes(t testing.TB, s Store) []agent.PushRow {
	t.Helper()
	return allPushes(t, s)
}
