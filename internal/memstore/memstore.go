// Package memstore is a database in memory for simulations. Several replicas share one,
// each by a Store of its own. It fails in the ways in which PostgreSQL does. It passes
// the contract of package storetest.
//
// A transaction begins, works and ends at moments that the simulation chooses; in
// between others do the same. It may be refused, its answer may be lost before or
// after the commit, and a server may be replaced by its standby.
package memstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/coder/agentstatsd/agent"
)

// What a server, or the way to it, answers to one attempt at a transaction. A
// Store tries again at once, a few times, as store.Store does.
var (
	// ErrSerialization is that of a transaction that met another one.
	ErrSerialization = errors.New("could not serialize access due to concurrent update")
	// ErrReset is that of a connection that broke: nobody knows what was written.
	ErrReset = fmt.Errorf("connection reset: %w", io.ErrUnexpectedEOF)
	// ErrRefused is that of a server which nobody can use.
	ErrRefused = errors.New("connection refused")
	// ErrReadOnly is that of the old server after its standby took its place.
	ErrReadOnly = errors.New("cannot execute in a read-only transaction")
	// ErrKilled is that of a Store whose process is gone.
	ErrKilled = errors.New("the process is gone")
)

// Fault is what happens to one attempt at a transaction. The zero value lets it
// pass at once.
type Fault struct {
	// Before is the time until the server has it, Work until it commits, After
	// until its answer arrives.
	Before, Work, After time.Duration
	// Err is the answer in place of the transaction, of which nothing is written.
	Err error
	// Hang: there is no answer until the caller's context ends, or the connection
	// is given up. Nothing is written.
	Hang bool
	// Lost: the caller gets ErrReset once Work has passed, and the transaction
	// commits when Late has passed since.
	Lost bool
	Late time.Duration
}

// Options of a Store. The zero value is a database without faults.
type Options struct {
	// TouchInterval is as in store.Options.
	TouchInterval time.Duration
	// RemovalsKept is as in store.Options.
	RemovalsKept int
	// NamedKept is how many ids of those who were named again are remembered; 0: as
	// many as a store.Store does.
	NamedKept int
	// Fault is asked before each attempt at a transaction; doing is its name, like
	// "upsert metadata". It may be called concurrently.
	Fault func(doing string, writes bool) Fault
	// Random draws the pause between two attempts, within [0, 1).
	Random func() float64
	// Rejects returns which rows the database refuses, beside those that no database
	// takes.
	Rejects func(*agent.Metadata) bool
}

// Database is what replicas share. Its methods are safe for concurrent use.
type Database struct {
	mu sync.Mutex
	// Guarded by mu.

	// tables are those of the server that takes writes, stale those of the one
	// before it.
	tables, stale *tables
	// generation counts the servers.
	generation int
	// active are the transactions that have begun to write.
	active map[int64]struct{}
	// changed is called with agents that are removed and that are new.
	changed func(ctx context.Context, removed, added []agent.ID)

	late sync.WaitGroup
}

// New returns an empty database.
func New() *Database {
	return &Database{tables: newTables(), active: make(map[int64]struct{})}
}

// Open returns the access of one replica. It stays with the server of now until
// that refuses a write.
func (d *Database) Open(opts Options) *Store {
	if opts.RemovalsKept == 0 {
		opts.RemovalsKept = 50_000
	}
	if opts.NamedKept == 0 {
		opts.NamedKept = 1 << 20
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Store{db: d, opts: opts, server: d.generation}
}

// OnChange sets f, which is called when a change of registrations is committed, with
// the agents that it removes and adds. The database's lock is locked then. An agent can
// be among both. ctx is that of ApplyChange.
func (d *Database) OnChange(f func(ctx context.Context, removed, added []agent.ID)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = f
}

// Agents returns those that are registered.
func (d *Database) Agents() []agent.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return sortedKeys(d.tables.agents)
}

// Registration returns what is stored of an agent, which is registered.
func (d *Database) Registration(id agent.ID) agent.Registration {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.tables.agents[id].Registration
	r.Workspace = d.tables.workspaces[r.Workspace.ID].Workspace
	return r
}

// State returns what is stored of an agent's state.
func (d *Database) State(id agent.ID) agent.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	st, _ := d.tables.states[id].since(0)
	st.Agent = d.tables.states[id].Agent
	return st
}

// Lease returns who leads, and what was decided.
func (d *Database) Lease() agent.Lease {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tables.lease
}

// Value returns what is stored of a metadata key.
func (d *Database) Value(id agent.ID, key string) (m agent.Metadata, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, known = d.tables.metadata[id][key]
	return m, known
}

// FailOver puts the standby in the place of the server. It has all that was
// committed; what was under way is lost. Stores that had the old server read what
// that had, and are refused when they write; then they have the new one.
func (d *Database) FailOver() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stale = d.tables
	d.tables = d.tables.clone()
	d.generation++
	clear(d.active)
}

// Wait returns when all transactions have ended that commit late.
func (d *Database) Wait() { d.late.Wait() }

// Store is one replica's access to a Database. Its methods are those of
// store.Store.
type Store struct {
	db   *Database
	opts Options

	mu sync.Mutex
	// Guarded by mu.
	killed bool
	server int
	// rewriteUntil is as in store.Store: until then a write whose answer was lost
	// may still be under way.
	rewriteUntil time.Time
}

// Kill has all calls fail from now on, also those under way: nothing more is
// written by them.
func (s *Store) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed = true
}

// Pauses between attempts, how many are made, and for how long a transaction may
// be under way after its answer was lost: those of store.Store.
const (
	maxAttempts   = 3
	minPause      = 50 * time.Millisecond
	maxPause      = 250 * time.Millisecond
	rewriteWindow = time.Minute
	// giveUp is when a connection without an answer is taken for broken.
	giveUp = 30 * time.Second
)

// transaction is one attempt. prepare reads, when the server has it; apply
// writes, when it commits, and may be nil. Either may fail, and then nothing was
// written: apply checks before it writes.
type transaction struct {
	doing   string
	prepare func(*tables) error
	apply   func(t *tables, number int64) error
}

// run makes attempts until one succeeds or fails for good.
func (s *Store) run(ctx context.Context, tx transaction) error {
	return s.runEach(ctx, func() (transaction, func()) { return tx, func() {} })
}

// runEach is run for transactions with results. open makes the transaction of one
// attempt, with variables of its own, as an earlier attempt whose answer was lost may
// still be under way. deliver copies the results of the attempt that succeeded.
func (s *Store) runEach(ctx context.Context, open func() (tx transaction, deliver func())) error {
	down := false
	for n := 1; ; n++ {
		tx, deliver := open()
		err := s.attempt(ctx, tx)
		if err == nil {
			deliver()
			return nil
		}
		down = down || errors.Is(err, ErrRefused)
		again := errors.Is(err, ErrSerialization) || errors.Is(err, ErrReset) || errors.Is(err, ErrRefused) || errors.Is(err, ErrReadOnly)
		if n < maxAttempts && again && s.pause(ctx) {
			continue
		}
		if down && again {
			err = fmt.Errorf("%w: %w", agent.ErrStoreDown, err)
		}
		return fmt.Errorf("%s: %w", tx.doing, err)
	}
}

func (s *Store) pause(ctx context.Context) bool {
	random := 0.5
	if s.opts.Random != nil {
		random = s.opts.Random()
	}
	return sleep(ctx, minPause+time.Duration(random*float64(maxPause-minPause))) == nil
}

// sleep waits, and returns the error of ctx if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) attempt(ctx context.Context, tx transaction) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var fault Fault
	if s.opts.Fault != nil {
		fault = s.opts.Fault(tx.doing, tx.apply != nil)
	}
	if err := sleep(ctx, fault.Before); err != nil {
		s.doubt(tx)
		return err
	}
	switch {
	case fault.Hang:
		if err := sleep(ctx, giveUp); err != nil {
			return err
		}
		return ErrReset
	case fault.Err != nil:
		if errors.Is(fault.Err, ErrReset) {
			s.doubt(tx)
		}
		return fault.Err
	}
	number, err := s.begin(tx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, fault.Work); err != nil {
		// The server goes on for a while after its client has gone.
		s.commitLater(tx, number, fault.Late)
		s.doubt(tx)
		return err
	}
	if fault.Lost {
		s.commitLater(tx, number, fault.Late)
		s.doubt(tx)
		return ErrReset
	}
	if err := s.commit(tx, number); err != nil {
		return err
	}
	if err := sleep(ctx, fault.After); err != nil {
		s.doubt(tx)
		return err
	}
	if s.isKilled() {
		return ErrKilled
	}
	return nil
}

func (s *Store) isKilled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.killed
}

// doubt notes that nobody knows whether tx is written, or will be.
func (s *Store) doubt(tx transaction) {
	if tx.apply == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rewriteUntil = time.Now().Add(rewriteWindow)
}

// begin gives a transaction that writes its number, and has it read.
func (s *Store) begin(tx transaction) (number int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.db
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.killed {
		return 0, ErrKilled
	}
	t := d.tables
	if s.server != d.generation {
		if tx.apply != nil {
			s.server = d.generation
			return 0, ErrReadOnly
		}
		if s.server == d.generation-1 {
			t = d.stale
		}
	}
	if tx.prepare != nil {
		if err := tx.prepare(t); err != nil {
			return 0, err
		}
	}
	if tx.apply == nil {
		return 0, nil
	}
	t.number++
	d.active[t.number] = struct{}{}
	return t.number, nil
}

// commit writes. A transaction that had begun on another server is lost.
func (s *Store) commit(tx transaction, number int64) error {
	if tx.apply == nil {
		return nil
	}
	if s.isKilled() {
		s.db.end(number)
		return ErrKilled
	}
	return s.db.commit(tx, number)
}

func (d *Database) end(number int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.active, number)
}

func (d *Database) commit(tx transaction, number int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, active := d.active[number]; !active {
		return ErrReset
	}
	delete(d.active, number)
	return tx.apply(d.tables, number)
}

// commitLater commits when late has passed. Its replica gets no answer.
func (s *Store) commitLater(tx transaction, number int64, late time.Duration) {
	if tx.apply == nil {
		return
	}
	s.db.late.Go(func() {
		time.Sleep(late)
		_ = s.db.commit(tx, number)
	})
}

// cursorLocked is that of incremental reads of t: all transactions below it have
// ended.
func (d *Database) cursorLocked(t *tables) int64 {
	next := t.number + 1
	if t == d.tables {
		for number := range d.active {
			next = min(next, number)
		}
	}
	return next
}

// Ping reads from the database.
func (s *Store) Ping(ctx context.Context) error {
	return s.run(ctx, transaction{doing: "ping database"})
}

// sortedKeys returns the keys of an id-keyed table in their order.
func sortedKeys[V any](m map[agent.ID]V) []agent.ID {
	return slices.SortedFunc(maps.Keys(m), compareIDs)
}

func compareIDs(a, b agent.ID) int { return bytes.Compare(a[:], b[:]) }
