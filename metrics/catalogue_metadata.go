package metrics

// metadataFamilies are the batcher's, about its flushes.
var metadataFamilies = []Family{
	{
		Name: "coderd_agentapi_metadata_batch_size", Type: Histogram, Owner: OwnerService,
		Help:    "Total number of metadata entries in each batch, updated before flushes.",
		Buckets: []float64{10, 25, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500},
		Source:  "Observed before each flush.",
	},
	{
		Name: "coderd_agentapi_metadata_batch_utilization", Type: Histogram, Owner: OwnerService,
		Help:    "Number of metadata keys per agent in each batch, updated before flushes.",
		Buckets: []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 40, 80, 160},
		Source:  "Observed before each flush, once for each agent in the batch.",
	},
	{
		Name: "coderd_agentapi_metadata_batches_total", Type: Counter, Owner: OwnerService,
		Labels: []string{"reason"},
		Help:   "Total number of metadata batches flushed.",
		Source: "1 for each flush that the database took, by reason: capacity, scheduled, shutdown.",
	},
	{
		Name: "coderd_agentapi_metadata_dropped_keys_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of metadata keys dropped due to capacity limits.",
		Source: "Entries refused because too many wait for the database.",
	},
	{
		Name: "coderd_agentapi_metadata_flush_duration_seconds", Type: Histogram, Owner: OwnerService,
		Labels:  []string{"reason"},
		Help:    "Time taken to flush metadata batch to database and pubsub.",
		Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		Source:  "Observed after each flush that the database took, by reason: capacity, scheduled, shutdown.",
	},
	{
		Name: "coderd_agentapi_metadata_flushed_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of unique metadatas flushed.",
		Source: "Entries that a flush brought to the database, those included that said nothing new and were not written again.",
	},
	{
		Name: "coderd_agentapi_metadata_publish_errors_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of metadata batch pubsub publish calls that have resulted in an error.",
		Source: "Notifications of flushed metadata that could not be published.",
	},
}
