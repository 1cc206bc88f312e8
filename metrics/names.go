package metrics

import (
	"strings"
	"unicode/utf8"
)

// Limits of one forwarded sample, as agentstats.v1 states them.
const (
	MaxNameBytes       = 200
	MaxLabelNameBytes  = 128
	MaxLabelValueBytes = 1024
	// MaxLabels of a sample, those of its agent's identity not counted.
	// Prometheus servers are commonly set to refuse more than 30 to 60.
	MaxLabels = 32
	// MaxLabelsBytes is the sum over a sample's label names and values. Without it 32
	// labels of full length would make a line of 36 KB. The limits on the number of
	// series would then allow 36 GB.
	MaxLabelsBytes = 4096
)

// Reason is why a sample is refused, as counters label it. Empty: it is not.
type Reason string

// Reasons found by looking at one sample or one name alone.
const (
	ReasonInvalidName       Reason = "invalid_name"
	ReasonNameTooLong       Reason = "name_too_long"
	ReasonReservedName      Reason = "reserved_name"
	ReasonOwnedByService    Reason = "owned_by_service"
	ReasonInvalidLabelName  Reason = "invalid_label_name"
	ReasonLabelNameTooLong  Reason = "label_name_too_long"
	ReasonReservedLabel     Reason = "reserved_label"
	ReasonDuplicateLabel    Reason = "duplicate_label"
	ReasonInvalidLabelValue Reason = "invalid_label_value"
	ReasonLabelValueTooLong Reason = "label_value_too_long"
	ReasonTooManyLabels     Reason = "too_many_labels"
	ReasonLabelsTooLong     Reason = "labels_too_long"
	// ReasonForwardedSeries is why series of agents are refused that a coderd pushes.
	ReasonForwardedSeries Reason = "forwarded_series"
)

// ForwardedHelp is the help of all families that a coderd forwards for its agents.
const ForwardedHelp = "Metrics are forwarded from workspace agents connected to this instance of coderd."

// reservedPrefixes begin the names of families that are not the agents': those
// of coderd, of this service, of the libraries in both, and of Prometheus.
var reservedPrefixes = []string{
	"coderd_", "coder_", "go_", "process_", "promhttp_", "grpc_", "agentstatsd_", "scrape_",
}

// CheckForwardedName returns why agents may not send a family called name.
func CheckForwardedName(name string) Reason {
	switch {
	case len(name) > MaxNameBytes:
		return ReasonNameTooLong
	case !validName(name):
		return ReasonInvalidName
	case name == "up" || name == "ALERTS" || name == "ALERTS_FOR_STATE":
		return ReasonReservedName
	}
	if f, ok := Documented(name); ok {
		if f.Owner == OwnerAgents {
			return ""
		}
		return ReasonReservedName
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(name, p) {
			return ReasonReservedName
		}
	}
	return ""
}

// servicePrefixes begin the names of families of this service and of Prometheus.
var servicePrefixes = []string{"agentstatsd_", "grpc_server_", "scrape_"}

// runtimeNames are the families of the Go runtime, the process and promhttp that the
// service has beside those of the catalogue. Others of these prefixes are coderd's, like
// go_sql_open_connections and process_network_receive_bytes_total.
var runtimeNames = map[string]struct{}{
	"go_gc_gogc_percent": {}, "go_gc_gomemlimit_bytes": {}, "go_sched_gomaxprocs_threads": {},
	"promhttp_metric_handler_errors_total": {},
}

// CheckPushedName returns why coderd may not push a family called name. Names
// that the catalogue lacks are fine: a coderd may be newer.
func CheckPushedName(name string) Reason {
	switch {
	case len(name) > MaxNameBytes:
		return ReasonNameTooLong
	case !validName(name):
		return ReasonInvalidName
	case name == "up" || name == "ALERTS" || name == "ALERTS_FOR_STATE":
		return ReasonOwnedByService
	case notCoderds(name):
		return ReasonOwnedByService
	}
	if _, ok := runtimeNames[name]; ok {
		return ReasonOwnedByService
	}
	for _, p := range servicePrefixes {
		if strings.HasPrefix(name, p) {
			return ReasonOwnedByService
		}
	}
	// A histogram or summary x has lines called x_count, which would be lines
	// of a family of that name.
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if notCoderds(name + suffix) {
			return ReasonOwnedByService
		}
		base, ok := strings.CutSuffix(name, suffix)
		if !ok {
			continue
		}
		if _, t := ownerOf(base); notCoderds(base) && (t == Histogram || t == Summary) {
			return ReasonOwnedByService
		}
	}
	return ""
}

// PassedThrough reports whether coderd has the family too, though it is not coderd's: one
// of agents, or one that the service computes of them.
func PassedThrough(name string) bool {
	owner, _ := ownerOf(name)
	return owner == OwnerAgents || owner == OwnerService && strings.HasPrefix(name, "coderd_")
}

// notCoderds reports whether the service or agents own the family called name.
func notCoderds(name string) bool {
	owner, _ := ownerOf(name)
	return owner != "" && owner != OwnerCoderd
}

// IsCoderds reports whether Coder documents the family called name as coderd's own.
func IsCoderds(name string) bool {
	owner, _ := ownerOf(name)
	return owner == OwnerCoderd
}

// NamesAgent reports whether a label says which agent a series is of. Of coderd's own
// families only documented ones have such labels; template_name is not one.
func NamesAgent(label string) bool {
	return label == "agent_name" || label == "username" || label == "workspace_name"
}

// CheckLabel returns why an agent's sample may not carry the label. An empty
// value is fine: it means that the label is not there.
func CheckLabel(name, value string) Reason {
	switch {
	case len(name) > MaxLabelNameBytes:
		return ReasonLabelNameTooLong
	case !validLabelName(name):
		return ReasonInvalidLabelName
	case reservedLabel(name):
		return ReasonReservedLabel
	case len(value) > MaxLabelValueBytes:
		return ReasonLabelValueTooLong
	case !utf8.ValidString(value):
		return ReasonInvalidLabelValue
	}
	return ""
}

// reservedLabel reports whether the label says who the agent is, or means
// something to Prometheus.
func reservedLabel(name string) bool {
	switch name {
	case "agent_name", "template_name", "username", "workspace_name", "le", "quantile":
		return true
	}
	return strings.HasPrefix(name, "__")
}

// validName matches [a-zA-Z_:][a-zA-Z0-9_:]*, what every version of Prometheus
// takes without quotes.
func validName(name string) bool {
	for i := range len(name) {
		if c := name[i]; !nameByte(c, i) && c != ':' {
			return false
		}
	}
	return name != ""
}

// validLabelName matches [a-zA-Z_][a-zA-Z0-9_]*.
func validLabelName(name string) bool {
	for i := range len(name) {
		if !nameByte(name[i], i) {
			return false
		}
	}
	return name != ""
}

func nameByte(c byte, i int) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || '0' <= c && c <= '9' && i > 0
}
