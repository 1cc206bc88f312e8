package clienttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coder/agentstatsd/client"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var (
	agentID     = uuid.MustParse("5a1c2f70-0000-4000-8000-000000000001")
	appID       = uuid.MustParse("5a1c2f70-0000-4000-8000-000000000002")
	workspaceID = uuid.MustParse("5a1c2f70-0000-4000-8000-000000000003")
)

const agentToken = "the agent's token"

// registration is what coderd knows of an agent.
func registration() *agentstatsv1.AgentRegistration {
	hash := sha256.Sum256([]byte(agentToken))
	// Past, also where time begins in 2000: within testing/synctest.
	made := timestamppb.New(time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC))
	return &agentstatsv1.AgentRegistration{
		Id:          agentID[:],
		Name:        "main",
		CreatedAt:   made,
		TokenSha256: hash[:],
		Apps: []*agentstatsv1.App{{
			Id: appID[:], Slug: "code-server", DisplayName: "code-server",
			Health: agentstatsv1.AppHealth_APP_HEALTH_INITIALIZING,
		}},
		Workspace: &agentstatsv1.Workspace{
			Id:            workspaceID[:],
			Name:          "dev",
			OwnerId:       uuid.Max[:],
			OwnerUsername: "alice",
			Template:      &agentstatsv1.Template{Id: uuid.Max[:], Name: "docker"},
			Build:         &agentstatsv1.Build{Id: uuid.Max[:], CreatedAt: made, Transition: agentstatsv1.Build_TRANSITION_START},
		},
	}
}

// An agent sends its stats each report interval, and what changes as it changes.
func Example_agent() {
	service := startService()
	defer service.close()
	registerExampleAgent(service)
	ctx := context.Background()

	// An agent outside of this test dials like this:
	//
	//	conn, err := client.Dial("stats.example.com:2113", client.DialOptions{TokenFile: "/run/agent-token"})
	conn := service.conn(agentToken)
	defer func() { _ = conn.Close() }()

	agent, err := client.NewAgent(conn, client.AgentOptions{
		Collect: func(context.Context) *agentstatsv1.Stats {
			return &agentstatsv1.Stats{
				RxBytes:         1200, // since the last call
				ConnectionCount: 2,
				SessionCounts:   map[string]int64{"vscode": 1},
				Metrics: []*agentstatsv1.Stats_Metric{{
					Name:   "agent_scripts_executed_total",
					Type:   agentstatsv1.Stats_Metric_TYPE_COUNTER,
					Value:  3,
					Labels: []*agentstatsv1.Stats_Metric_Label{{Name: "success", Value: "true"}},
				}},
			}
		},
		OnDurable: func(entries []client.Metadata) {
			for _, m := range entries {
				fmt.Printf("durable: %s = %s\n", m.Key, m.Value)
			}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var running sync.WaitGroup
	running.Go(func() { _ = agent.Run(ctx) })

	// Any of these may be called at any time, connected or not.
	agent.SetLifecycle(agentstatsv1.Lifecycle_STATE_READY, time.Now())
	if err := agent.SetAppHealth(appID, agentstatsv1.AppHealth_APP_HEALTH_HEALTHY); err != nil {
		fmt.Println(err)
	}
	if err := agent.UpdateMetadata(client.Metadata{Key: "cpu_usage", Value: "12%"}); err != nil {
		fmt.Println(err)
	}
	if err := agent.Flush(ctx); err != nil {
		fmt.Println(err)
	}
	printSeries(service, "agent_scripts_executed_total", "coderd_agentstats_rx_bytes")

	// At the end the agent says goodbye, and its series are gone.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := agent.Close(ctx); err != nil {
		fmt.Println(err)
	}
	running.Wait()
	counts := agent.Status().Counts
	fmt.Printf("%d of %d reports received\n", counts.ReportsReceived, counts.Reports)
	printSeries(service, "coderd_agentstats_rx_bytes")

	// Output:
	// durable: cpu_usage = 12%
	// agent_scripts_executed_total{agent_name="main",success="true",template_name="docker",username="alice",workspace_name="dev"} 3
	// coderd_agentstats_rx_bytes{agent_name="main",username="alice",workspace_name="dev"} 1200
	// 2 of 2 reports received
}

// coderd registers agents, relays for one that cannot dial the service itself,
// and watches what they say.
func Example_coderd() {
	service := startService()
	defer service.close()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	// coderd outside of this test dials like this:
	//
	//	conn, err := client.Dial("stats.example.com:2113", client.DialOptions{TokenFile: "/etc/coder/agentstatsd-token"})
	conn := service.conn(coderdToken)
	defer func() { _ = conn.Close() }()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}

	// Whenever workspaces are built; and all of them from time to time, by Sync.
	if _, err := coderd.Register(ctx, []*agentstatsv1.AgentRegistration{registration()}, nil); err != nil {
		fmt.Println(err)
		return
	}

	// The watch survives restarts of the service.
	synced, changes := make(chan struct{}), make(chan string)
	running.Go(func() {
		err := coderd.WatchMetadata(ctx, []uuid.UUID{agentID}, func(r *agentstatsv1.WatchMetadataResponse) {
			for _, agent := range r.GetAgents() {
				for _, v := range agent.GetValues() {
					changes <- fmt.Sprintf("change: %s = %s", v.GetKey(), v.GetValue())
				}
			}
			if r.GetSynced() {
				close(synced)
			}
		})
		if err != nil {
			fmt.Println(err)
		}
	})
	<-synced

	// What the agent says on its connection to coderd goes on to the service.
	relays, err := coderd.Relays(client.RelaysOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = relays.Close(ctx) }()
	relayed, err := relays.Connect(agentID, "agent")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer relayed.Disconnect()
	relayed.Report(&agentstatsv1.Stats{RxBytes: 700, ConnectionCount: 1})
	if err := relayed.UpdateMetadata(client.Metadata{Key: "disk", Value: "3/50 GiB"}); err != nil {
		fmt.Println(err)
	}
	fmt.Println(<-changes)

	for agent, err := range coderd.Agents(ctx) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("agent:", agent.GetWorkspace().GetName(), agent.GetName(), "connected:", agent.GetConnected())
	}
	deregistered, err := coderd.Deregister(ctx, nil, []uuid.UUID{workspaceID})
	fmt.Println("deregistered:", deregistered, err)

	// Output:
	// change: disk = 3/50 GiB
	// agent: dev main connected: true
	// deregistered: 1 <nil>
}

// A coderd pushes all its families, which Prometheus then sees at the service.
func Example_pushGatherer() {
	service := startService()
	defer service.close()
	conn := service.conn(coderdToken)
	defer func() { _ = conn.Close() }()

	// coderd has prometheus.DefaultRegisterer and prometheus.DefaultGatherer.
	registry := prometheus.NewRegistry()
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "coderd_api_requests_processed_total",
		Help: "The total number of processed API requests",
	}, []string{"code", "method", "path"})
	registry.MustRegister(requests)
	requests.WithLabelValues("200", "GET", "/api/v2/buildinfo").Add(3)

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := client.PushGatherer(ctx, conn, registry, client.PushOptions{}); err != nil {
			fmt.Println(err)
		}
	})

	// The end of its context has it push a last time: what was counted stays.
	cancel()
	running.Wait()
	var text bytes.Buffer
	must(service.pushed.WriteText(&text))
	for line := range strings.Lines(text.String()) {
		if strings.HasPrefix(line, "coderd_api_requests_processed_total{") {
			fmt.Print(line)
		}
	}

	// Output:
	// coderd_api_requests_processed_total{code="200",method="GET",path="/api/v2/buildinfo"} 3
}

func registerExampleAgent(s *service) {
	conn := s.conn(coderdToken)
	defer func() { _ = conn.Close() }()
	coderd, err := client.NewCoderd(conn, client.CoderdOptions{})
	must(err)
	_, err = coderd.Register(context.Background(), []*agentstatsv1.AgentRegistration{registration()}, nil)
	must(err)
}

// printSeries prints what Prometheus would see of some families.
func printSeries(s *service, families ...string) {
	var text bytes.Buffer
	must(s.aggregator.WriteText(&text))
	for line := range strings.Lines(text.String()) {
		for _, family := range families {
			if strings.HasPrefix(line, family+"{") {
				// Values are padded with blanks.
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
}
