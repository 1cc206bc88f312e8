package aggregator

import (
	"sync"
	"sync/atomic"

	"github.com/coder/agentstatsd/agent"
)

// desc is the name and the extra labels of a series. All agents that send the same
// share it. Only its encoding changes.
type desc struct {
	family *family
	name   string
	// labels are valid, sorted, not empty, none twice.
	labels []agent.Label
	// key contains the strings above.
	key  string
	refs atomic.Int32
	// encoding is nil until an agent has sent a sample that has one. Agents of one
	// version all send the same. The samples of other agents are decoded.
	encoding atomic.Pointer[typedEncoding]
}

// computed reports whether the service computes the series.
func (d *desc) computed() bool { return d.key == "" }

// bytes are those of the name and the labels.
func (d *desc) bytes() int64 { return int64(len(d.key)) }

// typedEncoding is how samples of a desc are encoded that have the type.
type typedEncoding struct {
	agent.SampleEncoding
	typ agent.SampleType
}

// encodingPart bounds what a name or a label takes beside its strings: tags and
// lengths. They are 9 bytes for a label, 5 for a name with its type.
const encodingPart = 16

// learnEncoding keeps the encoding of sample i, s, of the desc, if it is the first. An
// encoding may hold more than the strings of the desc, like labels without a value.
// One that is larger than need be is not kept.
func (d *desc) learnEncoding(r agent.Report, i int, s *agent.Sample) {
	if d.encoding.Load() != nil {
		return
	}
	e := r.Encoding(i)
	size := len(e.Head) + len(e.Tail)
	if size > 0 && size <= len(d.key)+encodingPart*(1+len(d.labels)) {
		d.encoding.CompareAndSwap(nil, &typedEncoding{e, s.Type})
	}
}

// is reports whether a sample as it was received is of the series.
func (d *desc) is(name string, labels []agent.Label) bool {
	if d.name != name || len(d.labels) != len(labels) {
		return false
	}
	for i := range labels {
		if d.labels[i] != labels[i] {
			return false
		}
	}
	return true
}

// descs has all descs, to share them.
type descs struct {
	mu    sync.RWMutex
	byKey map[string]*desc
}

func newDescs() *descs {
	return &descs{byKey: make(map[string]*desc)}
}

// acquire returns the desc with that key and a new reference; nil if there is none.
func (t *descs) acquire(key []byte) *desc {
	t.mu.RLock()
	defer t.mu.RUnlock()
	d := t.byKey[string(key)]
	if d != nil {
		d.refs.Add(1)
	}
	return d
}

// create is acquire that creates a missing desc. Its name and labels must be valid.
// It returns nil if there are too many families.
func (t *descs) create(key []byte, labels int, fams *families) *desc {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d := t.byKey[string(key)]; d != nil {
		d.refs.Add(1)
		return d
	}
	d := &desc{key: string(key)}
	rest := d.key
	next := func() (s string) {
		n := int(rest[0])<<8 | int(rest[1])
		s, rest = rest[keyPart:keyPart+n], rest[keyPart+n:]
		return s
	}
	d.name = next()
	if labels > 0 {
		d.labels = make([]agent.Label, labels)
		for i := range d.labels {
			d.labels[i] = agent.Label{Name: next(), Value: next()}
		}
	}
	f, ok := fams.acquire(d.name)
	if !ok {
		return nil
	}
	d.family = f
	d.refs.Store(1)
	t.byKey[d.key] = d
	return d
}

// release releases a reference of d.
func (t *descs) release(d *desc, fams *families) {
	if d.refs.Add(-1) > 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	// It may have been acquired, even released, by others meanwhile.
	if d.refs.Load() == 0 && t.byKey[d.key] == d {
		delete(t.byKey, d.key)
		fams.release(d.family)
	}
}
