package metrics

import (
	"bytes"
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of io.prometheus.client.MetricFamily, Metric, LabelPair and of
// the messages that have one double.
const (
	fieldFamilyName   = 1
	fieldFamilyHelp   = 2
	fieldFamilyType   = 3
	fieldFamilyMetric = 4
	// fieldPadding is not a field of MetricFamily: whoever reads it skips it.
	fieldPadding = 15

	fieldMetricLabel   = 1
	fieldMetricGauge   = 2
	fieldMetricCounter = 3
	fieldMetricUntyped = 5

	fieldLabelName  = 1
	fieldLabelValue = 2

	fieldValue = 1
)

// AppendProtoHeader appends the fields of a MetricFamily that stand before its
// metrics. Without help there is no help field.
func AppendProtoHeader(dst []byte, name, help string, t Type) []byte {
	dst = protowire.AppendTag(dst, fieldFamilyName, protowire.BytesType)
	dst = protowire.AppendString(dst, name)
	if help != "" {
		dst = protowire.AppendTag(dst, fieldFamilyHelp, protowire.BytesType)
		dst = protowire.AppendString(dst, help)
	}
	dst = protowire.AppendTag(dst, fieldFamilyType, protowire.VarintType)
	return protowire.AppendVarint(dst, protoType(t))
}

// SizeProtoHeader returns how many bytes AppendProtoHeader appends.
func SizeProtoHeader(name, help string, t Type) int {
	n := 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeVarint(protoType(t))
	if help != "" {
		n += 1 + protowire.SizeBytes(len(help))
	}
	return n
}

// AppendProtoPadding appends n bytes to the fields of a MetricFamily that say
// nothing. There is no padding of one byte.
func AppendProtoPadding(dst []byte, n int) []byte {
	const longest = 129 // with a length of one byte
	for n > 0 {
		field := min(n, longest)
		if n-field == 1 {
			field--
		}
		dst = protowire.AppendTag(dst, fieldPadding, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(field-2))
		dst = append(dst, make([]byte, field-2)...)
		n -= field
	}
	return dst
}

// protoType returns t's number in io.prometheus.client.MetricType.
func protoType(t Type) uint64 {
	switch t {
	case Counter:
		return 0
	case Gauge:
		return 1
	case Summary:
		return 2
	case Histogram:
		return 4
	default:
		return 3
	}
}

// AppendProtoMetric appends one metric field of a MetricFamily. labels is the
// list between the braces of a text line as AppendTextLabel writes it, separated
// by commas; it may be empty. t is Untyped, Counter or Gauge.
func AppendProtoMetric(dst, labels []byte, t Type, v float64) []byte {
	dst = protowire.AppendTag(dst, fieldFamilyMetric, protowire.BytesType)
	dst, start := openLength(dst)
	dst = AppendProtoLabels(dst, labels)
	return closeLength(AppendProtoMetricValue(dst, t, v), start)
}

// AppendProtoLabels appends the label fields of a Metric. labels is as for
// AppendProtoMetric.
func AppendProtoLabels(dst, labels []byte) []byte {
	for len(labels) > 0 {
		name, value, escapes, rest, ok := nextLabel(labels)
		if !ok {
			break
		}
		dst = appendLabelPair(dst, name, value, escapes)
		labels = bytes.TrimPrefix(rest, []byte{','})
	}
	return dst
}

// protoValueBytes is how many bytes AppendProtoMetricValue appends.
const protoValueBytes = 11

// AppendProtoMetricHeader appends what stands before the label fields of a metric field of a
// MetricFamily. AppendProtoMetricValue appends what follows them. They are labelBytes.
func AppendProtoMetricHeader(dst []byte, labelBytes int) []byte {
	dst = protowire.AppendTag(dst, fieldFamilyMetric, protowire.BytesType)
	return protowire.AppendVarint(dst, uint64(labelBytes+protoValueBytes))
}

// SizeProtoMetric returns the bytes of a metric field whose label fields are labelBytes.
func SizeProtoMetric(labelBytes int) int {
	return 1 + protowire.SizeBytes(labelBytes+protoValueBytes)
}

// AppendProtoMetricValue appends the value of a metric, of type Untyped, Counter or Gauge.
func AppendProtoMetricValue(dst []byte, t Type, v float64) []byte {
	dst = append(dst, metricTag(t), protoValueBytes-2)
	dst = protowire.AppendTag(dst, fieldValue, protowire.Fixed64Type)
	return protowire.AppendFixed64(dst, math.Float64bits(v))
}

// metricTag returns the tag of the field of a Metric that has the value.
func metricTag(t Type) byte {
	field := protowire.Number(fieldMetricUntyped)
	switch t {
	case Counter:
		field = fieldMetricCounter
	case Gauge:
		field = fieldMetricGauge
	}
	return byte(protowire.EncodeTag(field, protowire.BytesType))
}

// SetProtoMetricValue changes the value of what AppendProtoMetric appended: its
// last 8 bytes.
func SetProtoMetricValue(metric []byte, v float64) {
	binary.LittleEndian.PutUint64(metric[len(metric)-8:], math.Float64bits(v))
}

// SetProtoMetricType changes the type of what AppendProtoMetric appended: the
// tag before the length, the value's tag and the value.
func SetProtoMetricType(metric []byte, t Type) {
	metric[len(metric)-11] = metricTag(t)
}

// openLength makes room for a length of two bytes, which is what all but very
// short and very long metrics need. closeLength fills it in.
func openLength(dst []byte) (_ []byte, start int) {
	dst = append(dst, 0, 0)
	return dst, len(dst)
}

func closeLength(dst []byte, start int) []byte {
	n := len(dst) - start
	switch size := protowire.SizeVarint(uint64(n)); {
	case size < 2:
		copy(dst[start-1:], dst[start:])
		dst = dst[:len(dst)-1]
	case size > 2:
		dst = append(dst, make([]byte, size-2)...)
		copy(dst[start+size-2:], dst[start:start+n])
	}
	protowire.AppendVarint(dst[:start-2], uint64(n))
	return dst
}

// nextLabel splits the first name="value" off labels. The value is still escaped
// where it has escapes. It is false if labels does not begin with a label.
func nextLabel(labels []byte) (name, value []byte, escapes int, rest []byte, ok bool) {
	eq := bytes.IndexByte(labels, '=')
	if eq < 0 || eq+1 >= len(labels) || labels[eq+1] != '"' {
		return nil, nil, 0, nil, false
	}
	name, rest = labels[:eq], labels[eq+2:]
	end := bytes.IndexByte(rest, '"')
	if end >= 0 && bytes.IndexByte(rest[:end], '\\') < 0 {
		return name, rest[:end], 0, rest[end+1:], true
	}
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			escapes++
			i++
		case '"':
			return name, rest[:i], escapes, rest[i+1:], true
		}
	}
	return nil, nil, 0, nil, false
}

// appendLabelPair appends one label field of a Metric.
func appendLabelPair(dst, name, value []byte, escapes int) []byte {
	size := len(value) - escapes
	total := 2 + protowire.SizeBytes(len(name)) + protowire.SizeBytes(size)
	dst = protowire.AppendTag(dst, fieldMetricLabel, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(total))
	dst = protowire.AppendTag(dst, fieldLabelName, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(name)))
	dst = append(dst, name...)
	dst = protowire.AppendTag(dst, fieldLabelValue, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	if escapes == 0 {
		return append(dst, value...)
	}
	for i := 0; i < len(value); i++ {
		c := value[i]
		if c == '\\' && i+1 < len(value) {
			i++
			if c = value[i]; c == 'n' {
				c = '\n'
			}
		}
		dst = append(dst, c)
	}
	return dst
}
