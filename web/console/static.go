package console

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"mime"
	"net/http"
	"path"
	"strconv"
)

const staticPath = "/status/static/"

//go:embed static
var staticFiles embed.FS

// static serves the style sheet, the script and the icon. The pages name each with a part
// of its hash, so a browser keeps them until another program serves other ones.
type static struct {
	files map[string][]byte
	// Of all files, as they change with the program only.
	version string
}

func newStatic() (*static, error) {
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		return nil, fmt.Errorf("read what is served as it is: %w", err)
	}
	s := &static{files: make(map[string][]byte)}
	hash := sha256.New()
	for _, e := range entries {
		data, err := staticFiles.ReadFile("static/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("read what is served as it is: %w", err)
		}
		s.files[e.Name()] = data
		_, _ = hash.Write(data)
	}
	s.version = hex.EncodeToString(hash.Sum(nil)[:6])
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *static) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, ok := s.files[r.URL.Path[len(staticPath):]]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", mime.TypeByExtension(path.Ext(r.URL.Path)))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if r.URL.RawQuery == "v="+s.version {
		h.Set("Cache-Control", "private, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}
