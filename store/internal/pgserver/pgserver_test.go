package pgserver

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What a server lacks is said in one sentence, the first thing first.
func TestServerIsChecked(t *testing.T) {
	good := Server{version: oldestPostgres, encoding: "UTF8", schema: "public", creates: true}
	require.NoError(t, good.Check())
	require.NoError(t, good.MayCreate(t.Context()))
	for want, change := range map[string]func(*Server){
		"PostgreSQL 13 is older than 14, the oldest that this program knows": func(s *Server) { s.version, s.encoding = 13, "LATIN1" },
		"its encoding is LATIN1, not UTF8: make the database with ENCODING":  func(s *Server) { s.encoding, s.standby = "LATIN1", true },
		"the server is a standby, which cannot be written to":                func(s *Server) { s.standby, s.readOnly = true, true },
		"the server takes no writes (default_transaction_read_only is on)":   func(s *Server) { s.readOnly, s.schema = true, "" },
		"no schema of the search_path exists for this role":                  func(s *Server) { s.schema, s.creates = "", false },
	} {
		s := good
		change(&s)
		require.ErrorContains(t, s.Check(), want)
	}
	good.creates = false
	require.NoError(t, good.Check(), "it may be up to date")
	require.ErrorContains(t, good.MayCreate(t.Context()), `the role may not make tables in schema "public"`)
}
