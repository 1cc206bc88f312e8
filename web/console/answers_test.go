package console

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/coder/agentstatsd/internal/bubble"
	agentstatsv1 "github.com/coder/agentstatsd/proto/agentstats/v1"
)

var update = flag.Bool("update", false, "write the files that answers are compared with")

// The JSON is what programs read: each answer is compared as a whole.
func TestAnswers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		h := consoleOf(t, newFake(), Options{})
		for name, target := range map[string]string{
			"build": "build", "replicas": "replicas", "config": "config", "history": "history", "agents": "agents", "agent": "agents/x",
			"cardinality": "cardinality", "cost": "cost", "refusals": "refusals", "pushes": "pushes", "explain": "explain?selector=x",
		} {
			w := get(t, h, http.MethodGet, "/api/v1/status/"+target)
			require.Equal(t, http.StatusOK, w.Code, target)
			require.Equal(t, "application/json", w.Header().Get("Content-Type"))
			var got bytes.Buffer
			require.NoError(t, json.Indent(&got, w.Body.Bytes(), "", "  "))
			file := filepath.Join("testdata", name+".json")
			if *update {
				require.NoError(t, os.WriteFile(file, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String(), name)
			for range 20 { // protojson writes blanks at random
				require.Equal(t, w.Body.String(), get(t, h, http.MethodGet, "/api/v1/status/"+target).Body.String())
			}
		}
	})
}

// Parameters are the fields of the request, and nothing else.
func TestParameters(t *testing.T) {
	f := newFake()
	h := consoleOf(t, f, Options{})
	w := get(t, h, http.MethodGet, "/api/v1/status/agents?query=%22x%22&owner=o&template=t&status=connected&page_size=1&page_token=from+1&owner=")
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	want := &agentstatsv1.SearchAgentsRequest{Query: `"x"`, Owner: "o", Template: "t", Status: "connected", PageSize: 1, PageToken: "from 1"}
	require.True(t, proto.Equal(want, f.asked[0]), f.asked[0])
	f.asked = nil
	require.Equal(t, http.StatusOK, get(t, h, http.MethodGet, "/api/v1/status/cost?what_if_labels=username&what_if_labels=agent_name&what_if_labels=").Code)
	require.Equal(t, []string{"username", "agent_name"}, f.asked[0].(*agentstatsv1.GetCostRequest).GetWhatIfLabels())

	for target, text := range map[string]string{
		"agents?size=3":                                   `"size" is no parameter here`,
		"agents?page_size=x":                              `page_size: want an integer, got "x"`,
		"agents?page_size=3000000000":                     `page_size: want an integer, got "3000000000"`,
		"agents?owner=a&owner=b":                          `owner: want one value, got 2`,
		"agents?owner=%zz":                                `the query cannot be read`,
		"cardinality?by=value&label=%ff":                  `label: want UTF-8, got "\xff"`,
		"agents?owner=a;b":                                `the query cannot be read`,
		"agents?owner=" + strings.Repeat("a", 1025):       `"owner": want at most 1024 bytes, got 1025`,
		"cost?" + strings.Repeat("what_if_labels=a&", 65): `want at most 64 parameters, got 65`,
		"replicas?x=1":                                    `"x" is no parameter here`,
		"agents/x?" + url.Values{hostile: {"1"}}.Encode(): `is no parameter here`,
	} {
		f.asked = nil
		w := get(t, h, http.MethodGet, "/api/v1/status/"+target)
		require.Equal(t, http.StatusBadRequest, w.Code, target)
		var body struct{ Status, Error string }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		require.Equal(t, "error", body.Status)
		require.Contains(t, body.Error, text)
		require.Empty(t, f.asked)
	}
	w = get(t, h, http.MethodGet, "/api/v1/status/none")
	require.Equal(t, http.StatusNotFound, w.Code)
	require.Contains(t, w.Body.String(), `"status":"error"`)
	// Those of a page are wrong likewise, and those that it does not know are left.
	require.Equal(t, http.StatusBadRequest, get(t, h, http.MethodGet, "/status/agents?page_size=x").Code)
	require.Equal(t, http.StatusOK, get(t, h, http.MethodGet, "/status/agents?utm=x").Code)
}
