package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const (
	// maxKnown bounds the credentials that are remembered as right.
	maxKnown = 1024
	// maxGuesses bounds the passwords that wait to be checked.
	maxGuesses = 64
	// guessWait bounds the wait for a check.
	guessWait = 5 * time.Second
	// wrongDelay is by how much the answer to whoever is not let in is delayed, so that a
	// guesser needs many connections, which are bounded.
	wrongDelay = time.Second
	// fakeHash is checked for users that do not exist, so that the time shows nothing. It
	// is that of the exporter toolkit: "fakepassword".
	fakeHash = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
)

// passwords checks passwords. A check is expensive by design (bcrypt: 60 ms of a
// processor), so one is made at a time. Right passwords are remembered, so that who
// knows one does not wait for those who guess. Others wait in a line: addresses in
// turn, of one address the newest first, as guessers are always there and a scraper is
// not.
type passwords struct {
	key [sha256.Size]byte // of known, so that no password is kept

	mu       sync.Mutex
	known    map[[sha256.Size]byte]struct{}
	checking bool
	waiting  []*guess                   // by arrival
	checked  map[netip.Prefix]time.Time // when a guess of the address was checked last
}

// guess is a password that waits to be checked.
type guess struct {
	address netip.Prefix
	// ready gets true when it is its turn, false if it lost its place.
	ready chan bool
}

func newPasswords() *passwords {
	p := &passwords{known: make(map[[sha256.Size]byte]struct{}), checked: make(map[netip.Prefix]time.Time)}
	_, _ = rand.Read(p.key[:]) // it never fails
	return p
}

// digest identifies credentials; another hash of the same user is another one.
func (p *passwords) digest(user, hash, password string) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, p.key[:])
	for _, part := range []string{user, hash, password} {
		mac.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		mac.Write([]byte{':'})
		mac.Write([]byte(part))
	}
	copy(sum[:], mac.Sum(nil))
	return sum
}

// isKnown reports whether the credentials were right before.
func (p *passwords) isKnown(r *http.Request, users map[string]string) bool {
	user, password, ok := r.BasicAuth()
	hash, exists := users[user]
	if !ok || !exists {
		return false
	}
	sum := p.digest(user, hash, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok = p.known[sum]
	return ok
}

// check returns the status to answer with: 200 if the credentials are right. It may
// block for some seconds.
func (p *passwords) check(r *http.Request, address netip.Prefix, users map[string]string) int {
	user, password, ok := r.BasicAuth()
	if !ok {
		return http.StatusUnauthorized
	}
	hash, exists := users[user]
	if !exists {
		hash = fakeHash
	}
	if !p.await(r.Context(), address) {
		delay(r.Context())
		return http.StatusServiceUnavailable
	}
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	p.finish(address)
	if err != nil || !exists {
		delay(r.Context())
		return http.StatusUnauthorized
	}
	sum := p.digest(user, hash, password)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= maxKnown {
		clear(p.known)
	}
	p.known[sum] = struct{}{}
	return http.StatusOK
}

func delay(ctx context.Context) {
	select {
	case <-time.After(wrongDelay):
	case <-ctx.Done():
	}
}

// await waits until a password may be checked, and reports false if that takes too
// long. After true, finish is called.
func (p *passwords) await(ctx context.Context, address netip.Prefix) bool {
	g := &guess{address: address, ready: make(chan bool, 1)}
	p.mu.Lock()
	p.waiting = append(p.waiting, g)
	if len(p.waiting) > maxGuesses {
		lost := p.waiting[0]
		p.removeLocked(lost)
		lost.ready <- false
	}
	p.nextLocked()
	p.mu.Unlock()
	timeout := time.NewTimer(guessWait)
	defer timeout.Stop()
	select {
	case ok := <-g.ready:
		return ok
	case <-ctx.Done():
	case <-timeout.C:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case ok := <-g.ready:
		if ok {
			p.checking = false
			p.nextLocked()
		}
	default:
		p.removeLocked(g)
	}
	return false
}

// finish lets the next one check.
func (p *passwords) finish(address netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.checked) >= maxTrusted {
		clear(p.checked)
	}
	p.checked[address] = time.Now()
	p.checking = false
	p.nextLocked()
}

// nextLocked has the next one check: of the address that was checked the longest ago
// the newest.
func (p *passwords) nextLocked() {
	if p.checking || len(p.waiting) == 0 {
		return
	}
	next := p.waiting[len(p.waiting)-1]
	for _, g := range slices.Backward(p.waiting) {
		if p.checked[g.address].Before(p.checked[next.address]) {
			next = g
		}
	}
	p.removeLocked(next)
	p.checking = true
	next.ready <- true
}

func (p *passwords) removeLocked(g *guess) {
	p.waiting = slices.DeleteFunc(p.waiting, func(o *guess) bool { return o == g })
}
