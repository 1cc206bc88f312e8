package integration

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/coder/agentstatsd/internal/codertest"
	"github.com/coder/agentstatsd/internal/freeport"
)

// nginx and Caddy, as the quickstart has them, send agents' connections to the bridge and the
// rest to coderd.
func TestQuickstartProxies(t *testing.T) {
	parallel(t)
	for _, program := range []string{"nginx", "caddy"} {
		t.Run(program, func(t *testing.T) {
			beside(t)
			const token = "0b9d4c36-3f7f-4f7e-9a3e-0d7a1a2b3c4d"
			rpc := new(codertest.RPC)
			rpc.Add(codertest.Agent{ID: uuid.New(), Token: token, Manifest: []byte("manifest")})
			bridge := httptest.NewServer(rpc)
			defer bridge.Close()
			coderd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("coderd")) }))
			defer coderd.Close()
			addr := freeport.Addr()
			output := startProxy(t, program, addr, strings.NewReplacer("127.0.0.1:2114", bridge.Listener.Addr().String(),
				"127.0.0.1:3000", coderd.Listener.Addr().String(), "coder.example.com", "http://"+addr))
			require.Eventually(t, func() bool {
				resp, err := http.Get("http://" + addr + "/")
				if err != nil {
					return false
				}
				defer func() { _ = resp.Body.Close() }()
				body := make([]byte, 6)
				_, _ = resp.Body.Read(body)
				return string(body) == "coderd"
			}, 20*time.Second, 10*time.Millisecond, "%s", output)
			session, err := codertest.Dial(t.Context(), addr, token, codertest.DialOptions{Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}})
			require.NoError(t, err)
			defer func() { _ = session.Close() }()
			answer, err := session.Call(t.Context(), codertest.GetManifest, nil)
			require.NoError(t, err)
			require.Equal(t, "manifest", string(answer))
			require.Equal(t, "127.0.0.1", rpc.Headers()[0].Get("X-Forwarded-For"), "not what the agent says of itself")
		})
	}
}

// startProxy starts a program with its block of the quickstart until the test ends. It
// listens at addr; places has the addresses in its block.
func startProxy(t *testing.T, program, addr string, places *strings.Replacer) *lockedBuffer {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	block := blocks(t, quickstart, program)[0]
	text, args := "{\n\tadmin off\n\tauto_https off\n}\n"+block, []string{"run", "--adapter", "caddyfile", "--config", file}
	if program == "nginx" {
		text = fmt.Sprintf("daemon off; error_log stderr; pid %[1]s/pid; events {}\nhttp { access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;"+
			"fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;\nserver { listen %[2]s;\n%[3]s\nlocation / { proxy_pass http://127.0.0.1:3000; }\n}}", dir, addr, block)
		args = []string{"-p", dir, "-c", file}
	}
	require.NoError(t, os.WriteFile(file, []byte(places.Replace(text)), 0o600))
	cmd, output := exec.Command(debian(t, program), args...), new(lockedBuffer)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.Stdout, cmd.Stderr = output, output
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	return output
}
