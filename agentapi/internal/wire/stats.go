package wire

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/agent"
	"github.com/coder/agentstatsd/internal/contract"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

// The first bytes of the fields of Stats and of the messages in it.
const (
	tagConnectionsByProto = 1<<3 | byte(protowire.BytesType)
	tagConnectionCount    = 2<<3 | byte(protowire.VarintType)
	tagMedianLatency      = 3<<3 | byte(protowire.Fixed64Type)
	tagRxPackets          = 4<<3 | byte(protowire.VarintType)
	tagRxBytes            = 5<<3 | byte(protowire.VarintType)
	tagTxPackets          = 6<<3 | byte(protowire.VarintType)
	tagTxBytes            = 7<<3 | byte(protowire.VarintType)
	tagVSCode             = 8<<3 | byte(protowire.VarintType)
	tagJetBrains          = 9<<3 | byte(protowire.VarintType)
	tagReconnectingPTY    = 10<<3 | byte(protowire.VarintType)
	tagSSH                = 11<<3 | byte(protowire.VarintType)
	tagSample             = 12<<3 | byte(protowire.BytesType)
	tagSessionCounts      = 13<<3 | byte(protowire.BytesType)

	tagEntryKey   = 1<<3 | byte(protowire.BytesType)
	tagEntryValue = 2<<3 | byte(protowire.VarintType)

	tagSampleName  = 1<<3 | byte(protowire.BytesType)
	tagSampleType  = 2<<3 | byte(protowire.VarintType)
	tagSampleValue = 3<<3 | byte(protowire.Fixed64Type)
	tagSampleLabel = 4<<3 | byte(protowire.BytesType)

	tagLabelName  = 1<<3 | byte(protowire.BytesType)
	tagLabelValue = 2<<3 | byte(protowire.BytesType)
)

// maxPlainSessions in a plain report: an agent has some five apps.
const maxPlainSessions = 16

// maxPlainSamples in a plain report, and maxPlainLabels of a plain sample: far more
// than are taken in. What has more is left to the generated code, whose memory is
// estimated before.
const (
	maxPlainSamples = 16 << 10
	maxPlainLabels  = 256
)

// maxKeptSamples and maxKeptBytes bound the buffers of a report that is used again. A
// sample takes 40 bytes, and an agent of Coder has some 30 samples.
const (
	maxKeptSamples = 1024
	maxKeptBytes   = 4096
)

// maxRestBytes of a report are kept for watchers as they were sent; an agent's has
// some 100. A larger one is bounded at once, to at most 18 KB.
const maxRestBytes = 1024

// valueBytes is the size of a sample's value with its tag.
const valueBytes = 1 + 8

// Report is a report that is read from the wire. It implements agent.Report.
// It is valid while the bytes are.
type Report struct {
	stats   agent.Stats
	samples []wireSample
	// others are the fields of Stats that are not samples.
	others []byte
	// apps are the sessions by the name of their app.
	apps []agent.AppSessions

	sample agent.Sample
	labels []agent.Label
}

// wireSample is an encoded Metric. It is valid: what of it decodes is not checked
// again.
type wireSample struct {
	data reader
	// encoding is nil if none is known. value is the sample's if there is an encoding.
	encoding *agent.SampleEncoding
	value    float64
}

// match sets the encoding and returns true if the sample has it.
func (s *wireSample) match(f *agent.SampleEncoding) bool {
	head, middle := len(f.Head), len(s.data)-len(f.Head)-len(f.Tail)
	if middle != valueBytes && middle != 0 ||
		s.data[:head].string() != f.Head || s.data[head+middle:].string() != f.Tail {
		return false
	}
	s.value = 0 // which is not encoded
	if middle != 0 {
		if s.data[head] != tagSampleValue {
			return false
		}
		value := s.data[head+1:]
		s.value, _ = value.double()
	}
	s.encoding = f
	return true
}

// read reads an encoded Stats. It returns false if the message is not plain. encodings
// are those of the samples of the agent's last report, in their order. A sample that
// has its encoding again is valid, as that one was.
func (r *Report) read(w reader, encodings []*agent.SampleEncoding) bool {
	r.reset()
	var older agent.Sessions
	for len(w) > 0 {
		field := w
		t, ok := w.tag()
		if !ok {
			return false
		}
		switch t {
		case tagSample:
			var s wireSample
			if s.data, ok = w.bytes(); !ok {
				return false
			}
			n := len(r.samples)
			if n == maxPlainSamples {
				return false
			}
			if (n >= len(encodings) || encodings[n] == nil || !s.match(encodings[n])) && !validSample(s.data) {
				return false
			}
			r.samples = append(r.samples, s)
			continue
		case tagMedianLatency:
			r.stats.MedianLatencyMS, ok = w.double()
		case tagConnectionsByProto:
			_, ok = w.entry()
		case tagSessionCounts:
			ok = r.readSessions(&w)
		default:
			var v uint64
			v, ok = w.varint()
			ok = ok && r.setCount(t, int64(v), &older)
		}
		if !ok {
			return false
		}
		r.others = append(r.others, field[:len(field)-len(w)]...)
	}
	r.stats.Sessions, r.stats.Apps = agent.CountSessions(r.apps, older)
	return true
}

// setCount sets the value of a field that is a varint; false if there is none
// with that tag.
func (r *Report) setCount(t byte, v int64, older *agent.Sessions) bool {
	switch t {
	case tagConnectionCount:
		r.stats.ConnectionCount = v
	case tagRxBytes:
		r.stats.RxBytes = v
	case tagTxBytes:
		r.stats.TxBytes = v
	case tagVSCode:
		older.VSCode = v
	case tagJetBrains:
		older.JetBrains = v
	case tagReconnectingPTY:
		older.ReconnectingPTY = v
	case tagSSH:
		older.SSH = v
	case tagRxPackets:
		r.stats.RxPackets = v
	case tagTxPackets:
		r.stats.TxPackets = v
	default:
		return false
	}
	return true
}

// readSessions reads an entry of session_counts. An entry with a name that another
// one has is not plain: the last one counts then.
func (r *Report) readSessions(w *reader) bool {
	entry, ok := w.entry()
	if !ok || len(r.apps) == maxPlainSessions {
		return false
	}
	for i := range r.apps {
		if r.apps[i].Name == entry.Name {
			return false
		}
	}
	r.apps = append(r.apps, entry)
	return true
}

// entry reads an entry of a map from names to counts.
func (w *reader) entry() (e agent.AppSessions, ok bool) {
	b, ok := w.bytes()
	for ok && len(b) > 0 {
		var t byte
		if t, ok = b.tag(); !ok {
			break
		}
		switch t {
		case tagEntryKey:
			e.Name, ok = b.text()
		case tagEntryValue:
			var v uint64
			v, ok = b.varint()
			e.Count = int64(v)
		default:
			ok = false
		}
	}
	return e, ok
}

// validSample reports whether w is a plain Metric.
func validSample(w reader) bool {
	labels := 0
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok {
			return false
		}
		switch t {
		case tagSampleName:
			_, ok = w.text()
		case tagSampleType:
			_, ok = w.varint()
		case tagSampleValue:
			_, ok = w.double()
		case tagSampleLabel:
			var label reader
			label, ok = w.bytes()
			labels++
			ok = ok && labels <= maxPlainLabels && validLabel(label)
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

func validLabel(w reader) bool {
	for len(w) > 0 {
		t, ok := w.tag()
		if !ok || t != tagLabelName && t != tagLabelValue {
			return false
		}
		if _, ok = w.text(); !ok {
			return false
		}
	}
	return true
}

// reset releases the bytes, and buffers that few reports need.
func (r *Report) reset() {
	if cap(r.samples) > maxKeptSamples || cap(r.others) > maxKeptBytes {
		*r = Report{}
		return
	}
	clear(r.samples)
	clear(r.apps)
	clear(r.labels[:cap(r.labels)])
	*r = Report{samples: r.samples[:0], others: r.others[:0], apps: r.apps[:0], labels: r.labels[:0]}
}

// Stats implements agent.Report.
func (r *Report) Stats() agent.Stats { return r.stats }

// Len implements agent.Report.
func (r *Report) Len() int { return len(r.samples) }

// Match implements agent.Report.
func (r *Report) Match(i int, f *agent.SampleEncoding) (float64, bool) {
	s := &r.samples[i]
	if s.encoding == f || s.match(f) {
		return s.value, true
	}
	return 0, false
}

// encodings puts the known encodings of the samples into list, which read takes with
// the agent's next report.
func (r *Report) encodings(list []*agent.SampleEncoding) []*agent.SampleEncoding {
	n := min(len(r.samples), maxKeptSamples)
	if n != len(list) {
		list = slices.Grow(list[:0], n)[:n]
	}
	for i := range list {
		if f := r.samples[i].encoding; list[i] != f {
			list[i] = f
		}
	}
	return list
}

// Sample implements agent.Report.
func (r *Report) Sample(i int) *agent.Sample {
	r.labels = r.labels[:0]
	r.sample = agent.Sample{}
	for w := r.samples[i].data; len(w) > 0; {
		switch t, _ := w.tag(); t {
		case tagSampleName:
			b, _ := w.bytes()
			r.sample.Name = b.string()
		case tagSampleType:
			v, _ := w.varint()
			r.sample.Type = sampleType(agentstatsv1.Stats_Metric_Type(int32(v)))
		case tagSampleValue:
			r.sample.Value, _ = w.double()
		case tagSampleLabel:
			b, _ := w.bytes()
			r.labels = append(r.labels, labelOf(b))
		}
	}
	r.sample.Labels = r.labels
	return &r.sample
}

func labelOf(w reader) (l agent.Label) {
	for len(w) > 0 {
		t, _ := w.tag()
		b, _ := w.bytes()
		if t == tagLabelName {
			l.Name = b.string()
		} else {
			l.Value = b.string()
		}
	}
	return l
}

// Encoding implements agent.Report. A sample has one if its fields stand in the
// order of their numbers, and all but the labels once.
func (r *Report) Encoding(i int) agent.SampleEncoding {
	sample := r.samples[i].data
	w := sample
	var last byte
	head, tail := len(sample), 0
	for len(w) > 0 {
		at := len(sample) - len(w)
		t, _ := w.tag()
		if t < last || t == last && t != tagSampleLabel {
			return agent.SampleEncoding{}
		}
		last = t
		switch t {
		case tagSampleType:
			_, _ = w.varint()
			continue
		case tagSampleValue:
			_, _ = w.double()
			head, tail = at, at+valueBytes
			continue
		case tagSampleLabel:
			if tail == 0 {
				head, tail = at, at
			}
		}
		_, _ = w.bytes()
	}
	if tail == 0 {
		tail = len(sample)
	}
	return agent.SampleEncoding{Head: strings.Clone(sample[:head].string()), Tail: strings.Clone(sample[tail:].string())}
}

// Rest returns the report without its samples, encoded: at most maxRestBytes of what
// was sent, or what is left of it when it is bounded. It is valid while the bytes are.
func (r *Report) Rest() []byte {
	if len(r.others) <= maxRestBytes {
		return r.others
	}
	m := &agentstatsv1.Stats{}
	_ = proto.Unmarshal(r.others, m) // read found it valid
	return contract.EncodeRest(m)
}
