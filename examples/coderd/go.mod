module github.com/coder/agentstatsd/examples/coderd

go 1.24

replace (
	github.com/coder/agentstatsd/client => ../../client
	github.com/coder/agentstatsd/client/drpctap => ../../client/drpctap
	github.com/coder/agentstatsd/proto => ../../proto
)

require (
	github.com/coder/agentstatsd/client v0.1.0
	github.com/coder/agentstatsd/client/drpctap v0.1.0
	github.com/coder/agentstatsd/proto v0.1.0
	github.com/coder/websocket v1.8.13
	github.com/google/uuid v1.6.0
	github.com/hashicorp/yamux v0.1.2
	github.com/prometheus/client_golang v1.22.0
	github.com/stretchr/testify v1.10.0
	google.golang.org/grpc v1.73.0
	google.golang.org/protobuf v1.36.6
	storj.io/drpc v0.0.33
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/pmezard/go-difflib v1.0.0 // indirect
	github.com/prometheus/client_model v0.6.1 // indirect
	github.com/prometheus/common v0.62.0 // indirect
	github.com/prometheus/procfs v0.15.1 // indirect
	github.com/zeebo/errs v1.4.0 // indirect
	golang.org/x/net v0.38.0 // indirect
	golang.org/x/sys v0.31.0 // indirect
	golang.org/x/text v0.23.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20250324211829-b45e905df463 // indirect
	gopkg.in/yaml.v3 v3.0.1 // indirect
)
