package console

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

const answersPath = "/api/v1/status/"

// addAnswers adds the JSON: of each method that only reads, what it answers.
func (c *Console) addAnswers() {
	addAnswer(c, "build", c.build)
	addAnswer(c, "replicas", c.api.GetStatus)
	addAnswer(c, "config", c.api.GetConfig)
	addAnswer(c, "history", c.api.GetHistory)
	addAnswer(c, "agents", c.api.SearchAgents)
	addAnswer(c, "agents/{agent...}", c.describeAgent)
	addAnswer(c, "cardinality", c.api.GetCardinality)
	addAnswer(c, "cost", c.api.GetCost)
	addAnswer(c, "refusals", c.api.ListRefusals)
	addAnswer(c, "pushes", c.api.ListPushes)
	addAnswer(c, "explain", c.api.ExplainSeries)
	c.mux.HandleFunc("GET "+answersPath, func(w http.ResponseWriter, _ *http.Request) {
		writeError(w, http.StatusNotFound, "there is no such answer: docs/status-api.md has all")
	})
}

// addAnswer has what call answers served as JSON. The parameters of the query are the
// fields of the request.
func addAnswer[Req proto.Message, Resp any](c *Console, name string, call func(context.Context, Req) (Resp, error)) {
	c.mux.HandleFunc("GET "+answersPath+name, func(w http.ResponseWriter, r *http.Request) {
		var none Req
		req := none.ProtoReflect().New().Interface().(Req)
		err := fillStrictly(req, r)
		var resp Resp
		if err == nil {
			resp, err = call(r.Context(), req)
		}
		var data []byte
		if err == nil {
			data, err = marshal(resp)
		}
		if err != nil {
			code, text := c.failed(r, err)
			writeError(w, code, text)
			return
		}
		writeJSON(w, http.StatusOK, answer{Status: "success", Data: data})
	})
}

// answer is the envelope of all JSON, as Prometheus has it.
type answer struct {
	Status string          `json:"status"`
	Data   json.RawMessage `json:"data,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func writeError(w http.ResponseWriter, code int, text string) {
	writeJSON(w, code, answer{Status: "error", Error: text})
}

func writeJSON(w http.ResponseWriter, code int, a answer) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // nosniff, and the type is not HTML
	_ = encoder.Encode(a)        // of strings, and of JSON that was made here
	write(w, "application/json", code, &body)
}

// marshal returns an answer as JSON: names as in the .proto file, fields that are empty,
// too.
func marshal(resp any) ([]byte, error) {
	m, ok := resp.(proto.Message)
	if !ok {
		return json.Marshal(resp)
	}
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
}

// build is what is asked for most often of a status: which program it is.
type build struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	StartedAt string `json:"started_at"`
}

// build returns which program the replica is that is asked.
func (c *Console) build(ctx context.Context, req *agentstatsv1.GetStatusRequest) (*build, error) {
	resp, err := c.api.GetStatus(ctx, req)
	if err != nil {
		return nil, err
	}
	var own *agentstatsv1.ReplicaStatus
	if len(resp.GetReplicas()) > 0 {
		own = resp.GetReplicas()[0]
	}
	b := &build{ID: own.GetId(), Name: own.GetName(), Version: own.GetVersion(), Revision: own.GetRevision()}
	if own.GetStartedAt() != nil {
		b.StartedAt = rfc3339(own.GetStartedAt().AsTime())
	}
	return b, nil
}

// describeAgent is DescribeAgent, with values of metadata only if they are to be shown.
func (c *Console) describeAgent(ctx context.Context, req *agentstatsv1.DescribeAgentRequest) (*agentstatsv1.DescribeAgentResponse, error) {
	resp, err := c.api.DescribeAgent(ctx, req)
	if err != nil || c.opts.ShowMetadata {
		return resp, err
	}
	for _, entry := range resp.GetMetadata() {
		entry.Value, entry.Error = "", ""
	}
	return resp, nil
}
