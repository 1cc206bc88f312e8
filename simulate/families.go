package simulate

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// coderdFamilies are the documented families that coderd owns, with the labels
// that the newest coderd has.
type coderdFamilies struct {
	requests          *prometheus.CounterVec
	requestSeconds    *prometheus.HistogramVec
	requestsNow       *prometheus.GaugeVec
	websocketsNow     *prometheus.GaugeVec
	websocketSeconds  *prometheus.HistogramVec
	activeUsers       prometheus.Gauge
	latestBuild       *prometheus.GaugeVec
	latestBuildStatus *prometheus.GaugeVec

	jobSeconds      *prometheus.HistogramVec
	jobsNow         *prometheus.GaugeVec
	daemons         prometheus.Gauge
	buildSeconds    *prometheus.HistogramVec
	builds          *prometheus.CounterVec
	creationSeconds *prometheus.HistogramVec
	claimSeconds    *prometheus.HistogramVec
	creations       *creations

	interceptions       *prometheus.CounterVec
	interceptionSeconds *prometheus.HistogramVec
	interceptionsNow    *prometheus.GaugeVec
	prompts             *prometheus.CounterVec
	tokens              *prometheus.CounterVec
	injectedTools       *prometheus.CounterVec
	clientTools         *prometheus.CounterVec

	externalRequests   *prometheus.CounterVec
	rateLimit          *prometheus.GaugeVec
	rateLimitUsed      *prometheus.GaugeVec
	rateLimitRemaining *prometheus.GaugeVec
	rateLimitNextReset *prometheus.GaugeVec
	rateLimitResetIn   *prometheus.GaugeVec

	appUsage      *prometheus.GaugeVec
	parameters    *prometheus.GaugeVec
	templateUsers *prometheus.GaugeVec

	licenseUsers    prometheus.Gauge
	licenseLimit    prometheus.Gauge
	licenseEnabled  prometheus.Gauge
	licenseWarnings prometheus.Gauge
	licenseErrors   prometheus.Gauge
}

var (
	latencyBuckets = []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 30}
	jobBuckets     = []float64{1, 10, 30, 60, 300, 600, 1800, 3600}
)

// aiPrefixes stand before the names of the families about AI models: the newer
// one, and the one that they had before.
var aiPrefixes = []string{"coder_ai_gateway_", "coder_aibridged_"}

func newCoderdFamilies(reg prometheus.Registerer) coderdFamilies {
	make := promauto.With(reg)
	// Coder registers one collector under both prefixes.
	ai := func(c prometheus.Collector) {
		for _, prefix := range aiPrefixes {
			prometheus.WrapRegistererWithPrefix(prefix, reg).MustRegister(c)
		}
	}
	aiCounter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		ai(c)
		return c
	}
	aiGauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		ai(g)
		return g
	}
	aiHistogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		ai(h)
		return h
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return make.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return make.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return make.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return make.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	native := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return make.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, labels)
	}
	return coderdFamilies{
		requests:          counter("coderd_api_requests_processed_total", "The total number of processed API requests", "code", "method", "path"),
		requestSeconds:    histogram("coderd_api_request_latencies_seconds", "Latency distribution of requests in seconds.", latencyBuckets, "method", "path"),
		requestsNow:       gauges("coderd_api_concurrent_requests", "The number of concurrent API requests.", "method", "path"),
		websocketsNow:     gauges("coderd_api_concurrent_websockets", "The total number of concurrent API websockets.", "path"),
		websocketSeconds:  histogram("coderd_api_websocket_durations_seconds", "Websocket duration distribution of requests in seconds.", []float64{0.001, 1, 60, 3600, 54000, 108000}, "path"),
		activeUsers:       gauge("coderd_api_active_users_duration_hour", "The number of users that have been active within the last hour."),
		latestBuild:       gauges("coderd_api_workspace_latest_build", "The latest workspace builds with a status.", "status"),
		latestBuildStatus: gauges("coderd_workspace_latest_build_status", "The current workspace statuses by template, transition, and owner.", "status", "template_name", "template_version", "workspace_owner", "workspace_transition"),

		jobSeconds:      histogram("coderd_provisionerd_job_timings_seconds", "The provisioner job time duration in seconds.", jobBuckets, "provisioner", "status"),
		jobsNow:         gauges("coderd_provisionerd_jobs_current", "The number of currently running provisioner jobs.", "provisioner"),
		daemons:         gauge("coderd_provisionerd_num_daemons", "The number of provisioner daemons."),
		buildSeconds:    histogram("coderd_provisionerd_workspace_build_timings_seconds", "The time taken for a workspace to build.", jobBuckets, "status", "template_name", "template_version", "workspace_transition"),
		builds:          counter("coderd_workspace_builds_total", "The number of workspaces started, updated, or deleted.", "status", "template_name", "template_version", "workspace_name", "workspace_owner", "workspace_transition"),
		creationSeconds: native("coderd_workspace_creation_duration_seconds", "Time to create a workspace by organization, template, preset, and type (regular or prebuild).", jobBuckets, "organization_name", "preset_name", "template_name", "type"),
		claimSeconds:    native("coderd_prebuilt_workspace_claim_duration_seconds", "Time to claim a prebuilt workspace by organization, template, and preset.", []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300}, "organization_name", "preset_name", "template_name"),
		creations: newCreations(make, "coderd_workspace_creation_total",
			"Total regular (non-prebuilt) workspace creations by organization, template, and preset.", "organization_name", "preset_name", "template_name"),

		interceptions:       aiCounter("interceptions_total", "The count of intercepted requests.", "client", "initiator_id", "method", "model", "provider", "route", "status"),
		interceptionSeconds: aiHistogram("interceptions_duration_seconds", "The total duration of intercepted requests, in seconds. The majority of this time will be the upstream processing of the request. aibridge has no control over upstream processing time, so it's just an illustrative metric.", []float64{0.5, 2, 5, 15, 30, 60, 120}, "model", "provider"),
		interceptionsNow:    aiGauges("interceptions_inflight", "The number of intercepted requests which are being processed.", "model", "provider", "route"),
		prompts:             aiCounter("prompts_total", "The number of prompts issued by users (initiators).", "client", "initiator_id", "model", "provider"),
		tokens:              aiCounter("tokens_total", "The number of tokens used by intercepted requests.", "client", "initiator_id", "model", "provider", "type"),
		injectedTools:       aiCounter("injected_tool_invocations_total", "The number of times an injected MCP tool was invoked by aibridge.", "model", "name", "provider", "server"),
		clientTools:         aiCounter("non_injected_tool_selections_total", "The number of times an AI model selected a tool to be invoked by the client.", "model", "name", "provider"),

		externalRequests:   counter("coderd_oauth2_external_requests_total", "The total number of api calls made to external oauth2 providers. 'status_code' will be 0 if the request failed with no response.", "name", "source", "status_code"),
		rateLimit:          gauges("coderd_oauth2_external_requests_rate_limit", "The total number of allowed requests per interval.", "name", "resource"),
		rateLimitUsed:      gauges("coderd_oauth2_external_requests_rate_limit_used", "The number of requests made in this interval.", "name", "resource"),
		rateLimitRemaining: gauges("coderd_oauth2_external_requests_rate_limit_remaining", "The remaining number of allowed requests in this interval.", "name", "resource"),
		rateLimitNextReset: gauges("coderd_oauth2_external_requests_rate_limit_next_reset_unix", "Unix timestamp of the next interval", "name", "resource"),
		rateLimitResetIn:   gauges("coderd_oauth2_external_requests_rate_limit_reset_in_seconds", "Seconds until the next interval", "name", "resource"),

		appUsage:      gauges("coderd_insights_applications_usage_seconds", "The application usage per template.", "application_name", "organization_name", "slug", "template_name"),
		parameters:    gauges("coderd_insights_parameters", "The parameter usage per template.", "organization_name", "parameter_name", "parameter_type", "parameter_value", "template_name"),
		templateUsers: gauges("coderd_insights_templates_active_users", "The number of active users of the template.", "organization_name", "template_name"),

		licenseUsers:    gauge("coderd_license_active_users", "The number of active users."),
		licenseLimit:    gauge("coderd_license_limit_users", "The user seats limit based on the active Coder license."),
		licenseEnabled:  gauge("coderd_license_user_limit_enabled", "Returns 1 if the current license enforces the user limit."),
		licenseWarnings: gauge("coderd_license_warnings", "The number of active license warnings."),
		licenseErrors:   gauge("coderd_license_errors", "The number of active license errors."),
	}
}

// countedFamilies are what each instance counts for itself.
var countedFamilies = []string{
	"coder_ai_gateway_injected_tool_invocations_total",
	"coder_ai_gateway_interceptions_duration_seconds",
	"coder_ai_gateway_interceptions_total",
	"coder_ai_gateway_non_injected_tool_selections_total",
	"coder_ai_gateway_prompts_total",
	"coder_ai_gateway_tokens_total",
	"coder_aibridged_injected_tool_invocations_total",
	"coder_aibridged_interceptions_duration_seconds",
	"coder_aibridged_interceptions_total",
	"coder_aibridged_non_injected_tool_selections_total",
	"coder_aibridged_prompts_total",
	"coder_aibridged_tokens_total",
	"coderd_api_request_latencies_seconds",
	"coderd_api_requests_processed_total",
	"coderd_api_websocket_durations_seconds",
	"coderd_oauth2_external_requests_total",
	"coderd_prebuilt_workspace_claim_duration_seconds",
	"coderd_provisionerd_job_timings_seconds",
	"coderd_provisionerd_workspace_build_timings_seconds",
	"coderd_workspace_builds_total",
	"coderd_workspace_creation_duration_seconds",
}

// creations is a counter that shows what the database has counted.
type creations struct {
	vec   *prometheus.CounterVec
	shown map[string]float64
}

func newCreations(factory promauto.Factory, name, help string, labels ...string) *creations {
	return &creations{
		vec:   factory.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels),
		shown: make(map[string]float64),
	}
}

// show raises the series of a template to a total.
func (c *creations) show(organization, preset, template string, total float64) {
	key := organization + "/" + preset + "/" + template
	if more := total - c.shown[key]; more > 0 {
		c.vec.WithLabelValues(organization, preset, template).Add(more)
		c.shown[key] = total
	}
}
