package metrics

// runtimeFamilies are those of the client library about this process. Their help
// texts are as documented here, and in the library's own words in a scrape.
var runtimeFamilies = []Family{
	{
		Name: "go_gc_duration_seconds", Type: Summary, Owner: OwnerService,
		Help:   "A summary of the pause duration of garbage collection cycles.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_goroutines", Type: Gauge, Owner: OwnerService,
		Help:   "Number of goroutines that currently exist.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_info", Type: Gauge, Owner: OwnerService, Labels: []string{"version"},
		Help:   "Information about the Go environment.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_alloc_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes allocated and still in use.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_alloc_bytes_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of bytes allocated, even if freed.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_buck_hash_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes used by the profiling bucket hash table.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_frees_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of frees.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_gc_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes used for garbage collection system metadata.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_alloc_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes allocated and still in use.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_idle_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes waiting to be used.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_inuse_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes that are in use.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_objects", Type: Gauge, Owner: OwnerService,
		Help:   "Number of allocated objects.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_released_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes released to OS.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_heap_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes obtained from system.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_last_gc_time_seconds", Type: Gauge, Owner: OwnerService,
		Help:   "Number of seconds since 1970 of last garbage collection.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_lookups_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of pointer lookups.",
		Source: "Always 0: Go has no such counter any more.",
	},
	{
		Name: "go_memstats_mallocs_total", Type: Counter, Owner: OwnerService,
		Help:   "Total number of mallocs.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_mcache_inuse_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes in use by mcache structures.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_mcache_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes used for mcache structures obtained from system.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_mspan_inuse_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes in use by mspan structures.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_mspan_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes used for mspan structures obtained from system.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_next_gc_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of heap bytes when next garbage collection will take place.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_other_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes used for other system allocations.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_stack_inuse_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes in use by the stack allocator.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_stack_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes obtained from system for stack allocator.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_memstats_sys_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Number of bytes obtained from system.",
		Source: "The Go runtime.",
	},
	{
		Name: "go_threads", Type: Gauge, Owner: OwnerService,
		Help:   "Number of OS threads created.",
		Source: "The Go runtime.",
	},
	{
		Name: "process_cpu_seconds_total", Type: Counter, Owner: OwnerService,
		Help:   "Total user and system CPU time spent in seconds.",
		Source: "The operating system.",
	},
	{
		Name: "process_max_fds", Type: Gauge, Owner: OwnerService,
		Help:   "Maximum number of open file descriptors.",
		Source: "The operating system.",
	},
	{
		Name: "process_open_fds", Type: Gauge, Owner: OwnerService,
		Help:   "Number of open file descriptors.",
		Source: "The operating system.",
	},
	{
		Name: "process_resident_memory_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Resident memory size in bytes.",
		Source: "The operating system.",
	},
	{
		Name: "process_start_time_seconds", Type: Gauge, Owner: OwnerService,
		Help:   "Start time of the process since unix epoch in seconds.",
		Source: "The operating system.",
	},
	{
		Name: "process_virtual_memory_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Virtual memory size in bytes.",
		Source: "The operating system.",
	},
	{
		Name: "process_virtual_memory_max_bytes", Type: Gauge, Owner: OwnerService,
		Help:   "Maximum amount of virtual memory available in bytes.",
		Source: "The operating system.",
	},
	{
		Name: "promhttp_metric_handler_requests_in_flight", Type: Gauge, Owner: OwnerService,
		Help:   "Current number of scrapes being served.",
		Source: "The scrape handler.",
	},
	{
		Name: "promhttp_metric_handler_requests_total", Type: Counter, Owner: OwnerService, Labels: []string{"code"},
		Help:   "Total number of scrapes by HTTP status code.",
		Source: "The scrape handler.",
	},
}
