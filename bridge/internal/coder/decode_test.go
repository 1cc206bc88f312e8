package coder

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
)

// pageOf is a page of so many workspaces as the API has it.
func pageOf(workspaces int) []byte {
	rest := codertest.NewREST()
	rest.SetToken(token, codertest.Token{})
	for n := range workspaces {
		rest.Put(started(n))
	}
	req := httptest.NewRequest(http.MethodGet, "/api/v2/workspaces", nil)
	req.Header.Set("Coder-Session-Token", token)
	answer := httptest.NewRecorder()
	rest.ServeHTTP(answer, req)
	return answer.Body.Bytes()
}

// FuzzPage decodes whatever an API could send: without a panic, and what is yielded has an
// id and nothing that is not to be kept.
func FuzzPage(f *testing.F) {
	f.Add(pageOf(3))
	for _, text := range []string{
		`{"count":1e999,"workspaces":null}`, `{"workspaces":[{"id":[1]},7,null,"x",{"latest_build":{"resources":[{"agents":[null,{"latency":{"a":null,"b":{"latency_ms":-1}}}]}]}}]}`,
		`{"workspaces":{},"count":"1"}`, `[]`, `{`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		rows := 0
		p, _ := decodePage(json.NewDecoder(bytes.NewReader(body)), time.Now(), func(w *Workspace, _ bool) {
			rows++
			require.NotEqual(t, uuid.Nil, w.ID)
			for i := range w.Build.Agents {
				require.GreaterOrEqual(t, w.Build.Agents[i].ConnectionTimeout, time.Duration(0))
				for _, l := range w.Build.Agents[i].Latencies {
					require.GreaterOrEqual(t, l.Latency, time.Duration(0))
				}
			}
		})
		require.Equal(t, p.rows, rows+p.unreadable)
	})
}

func BenchmarkPage100(b *testing.B) {
	body := pageOf(100)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		p, err := decodePage(json.NewDecoder(bytes.NewReader(body)), time.Now(), func(*Workspace, bool) {})
		require.NoError(b, err)
		require.Equal(b, 100, p.rows)
	}
}
