package metrics

import (
	"slices"
	"strings"
)

// Family is one documented family: the contract with whoever scrapes.
type Family struct {
	Name string
	Type Type
	Help string
	// Labels are the names of the family's labels, sorted. They bind the
	// families that the service computes; forwarded ones may carry others.
	Labels []string
	// Buckets are the upper bounds of a histogram's buckets, +Inf left out.
	Buckets []float64
	// Owner is who may give the family values.
	Owner Owner
	// Group is how values combine when the identity labels are shortened.
	Group Grouping
}

// Owner is who gives a family its values.
type Owner string

// The owners of families.
const (
	// OwnerService computes the family: nobody may send it.
	OwnerService Owner = "service"
	// OwnerAgents forward the family.
	OwnerAgents Owner = "agents"
)

// Grouping is how the values of several agents become one.
type Grouping string

// The ways of grouping.
const (
	// GroupNone is for families without identity labels.
	GroupNone Grouping = ""
	// GroupSum adds the current values.
	GroupSum Grouping = "sum"
	// GroupMax takes the largest current value.
	GroupMax Grouping = "max"
	// GroupWeightedMean weighs each agent by its connection count.
	GroupWeightedMean Grouping = "mean weighted by connection_count"
	// GroupIncrements adds what each counter grew by, so that the sum does not
	// fall when an agent leaves.
	GroupIncrements Grouping = "sum of increments"
)

// Documented returns the family called name; false if none is documented. What
// it points to is shared and must not be changed.
func Documented(name string) (*Family, bool) {
	i, ok := slices.BinarySearchFunc(catalogue, name, func(f Family, name string) int {
		return strings.Compare(f.Name, name)
	})
	if !ok {
		return nil, false
	}
	return &catalogue[i], true
}

// Catalogue returns a copy of all documented families, sorted by name.
func Catalogue() []Family {
	return slices.Clone(catalogue)
}

// MustDocumented is Documented for names written in the code. It panics if the
// catalogue lacks the name.
func MustDocumented(name string) *Family {
	f, ok := Documented(name)
	if !ok {
		panic("metrics: " + name + " is not in the catalogue")
	}
	return f
}

// catalogue is sorted by name. Help texts are served as they stand here.
var catalogue = []Family{
	{
		Name: "agent_scripts_executed_total", Type: Counter, Owner: OwnerAgents, Group: GroupIncrements,
		Labels: []string{"agent_name", "success", "template_name", "username", "workspace_name"},
		Help:   "Total number of scripts executed by the Coder agent. Includes cron scheduled scripts.",
	},
	{
		Name: "coderd_agentapi_metadata_batch_size", Type: Histogram, Owner: OwnerService,
		Help:    "Total number of metadata entries in each batch, updated before flushes.",
		Buckets: []float64{10, 25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500},
	},
	{
		Name: "coderd_agentapi_metadata_batch_utilization", Type: Histogram, Owner: OwnerService,
		Help:    "Number of metadata keys per agent in each batch, updated before flushes.",
		Buckets: []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 40, 80, 160},
	},
	{
		Name: "coderd_agentapi_metadata_batches_total", Type: Counter, Owner: OwnerService,
		Labels: []string{"reason"},
		Help:   "Total number of metadata batches flushed.",
	},
	{
		Name: "coderd_agentapi_metadata_dropped_keys_total", Type: Counter, Owner: OwnerService,
		Help: "Total number of metadata keys dropped due to capacity limits.",
	},
	{
		Name: "coderd_agentapi_metadata_flush_duration_seconds", Type: Histogram, Owner: OwnerService,
		Labels:  []string{"reason"},
		Help:    "Time taken to flush metadata batch to database and pubsub.",
		Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
	},
	{
		Name: "coderd_agentapi_metadata_flushed_total", Type: Counter, Owner: OwnerService,
		Help: "Total number of unique metadatas flushed.",
	},
	{
		Name: "coderd_agentapi_metadata_publish_errors_total", Type: Counter, Owner: OwnerService,
		Help: "Total number of metadata batch pubsub publish calls that have resulted in an error.",
	},
	{
		Name: "coderd_agentstats_connection_count", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of established connections by agent",
	},
	{
		Name: "coderd_agentstats_connection_median_latency_seconds", Type: Gauge, Owner: OwnerService, Group: GroupWeightedMean,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The median agent connection latency",
	},
	{
		Name: "coderd_agentstats_currently_reachable_peers", Type: Gauge, Owner: OwnerAgents, Group: GroupSum,
		Labels: []string{"agent_name", "connection_type", "template_name", "username", "workspace_name"},
		Help:   "The number of peers (e.g. clients) that are currently reachable over the encrypted network.",
	},
	{
		Name: "coderd_agentstats_rx_bytes", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "Agent Rx bytes",
	},
	{
		Name: "coderd_agentstats_session_count_jetbrains", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by JetBrains",
	},
	{
		Name: "coderd_agentstats_session_count_reconnecting_pty", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by reconnecting PTY",
	},
	{
		Name: "coderd_agentstats_session_count_ssh", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by SSH",
	},
	{
		Name: "coderd_agentstats_session_count_vscode", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "The number of session established by VSCode",
	},
	{
		Name: "coderd_agentstats_startup_script_seconds", Type: Gauge, Owner: OwnerAgents, Group: GroupMax,
		Labels: []string{"agent_name", "success", "template_name", "username", "workspace_name"},
		Help:   "The number of seconds the startup script took to execute.",
	},
	{
		Name: "coderd_agentstats_tx_bytes", Type: Gauge, Owner: OwnerService, Group: GroupSum,
		Labels: []string{"agent_name", "username", "workspace_name"},
		Help:   "Agent Tx bytes",
	},
}
