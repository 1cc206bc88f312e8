package web

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
)

// A page whose name resolves to the listener is of the same origin, and is kept out where
// no password does.
func TestSameOrigin(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	require.NoError(t, err)
	dir := t.TempDir()
	withPassword := load(t, configFile(t, dir, "basic_auth_users:\n  ada: "+string(hash)+"\n"), io.Discard)
	withoutPassword := load(t, configFile(t, t.TempDir(), "http_server_config:\n  http2: true\n"), io.Discard)
	for name, c := range map[string]struct {
		host, origin, site string
		config             *Config
		want               int
	}{
		"a tool":                        {host: "agentstatsd.svc:2112", want: http.StatusOK},
		"a page of another origin":      {host: "127.0.0.1:2112", origin: "http://evil.example", want: http.StatusForbidden},
		"a page that says so":           {host: "127.0.0.1:2112", site: "cross-site", want: http.StatusForbidden},
		"a name that resolves here":     {host: "evil.example:2112", origin: "http://evil.example:2112", want: http.StatusForbidden},
		"likewise, of the same site":    {host: "evil.example:2112", origin: "http://evil.example:2112", site: "same-origin", want: http.StatusForbidden},
		"likewise, without a port":      {host: "evil.example", origin: "http://evil.example", want: http.StatusForbidden},
		"likewise, without a password":  {host: "evil.example", origin: "http://evil.example", config: withoutPassword, want: http.StatusForbidden},
		"a name, with a password":       {host: "evil.example", origin: "http://evil.example", config: withPassword, want: http.StatusOK},
		"a name that begins alike":      {host: "localhost.evil.example", origin: "http://localhost.evil.example", want: http.StatusForbidden},
		"a name like an address":        {host: "127.0.0.1.evil.example", origin: "http://127.0.0.1.evil.example", want: http.StatusForbidden},
		"an address":                    {host: "10.0.0.1:2112", origin: "http://10.0.0.1:2112", want: http.StatusOK},
		"an address of IPv6":            {host: "[::1]:2112", origin: "http://[::1]:2112", want: http.StatusOK},
		"an address of IPv6 as a whole": {host: "[::1]", origin: "http://[::1]", want: http.StatusOK},
		"localhost":                     {host: "LocalHost:2112", origin: "http://LocalHost:2112", want: http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "http://"+c.host+"/-/reload", nil)
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if c.site != "" {
				r.Header.Set("Sec-Fetch-Site", c.site)
			}
			w := httptest.NewRecorder()
			SameOrigin(hello, c.config).ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code, w.Body)
		})
	}
}
