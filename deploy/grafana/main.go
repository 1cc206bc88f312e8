// Command grafana writes the dashboards of deploy/grafana/dashboards: one for those who
// run the service, one for those who look after workspaces.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	dir := flag.String("dir", filepath.Join("grafana", "dashboards"), "where the dashboards are written, as <uid>.json")
	flag.Parse()
	for _, board := range boards() {
		if err := write(*dir, board); err != nil {
			fmt.Fprintf(os.Stderr, "error: %s\n", err)
			os.Exit(1)
		}
	}
}

// boards returns all dashboards.
func boards() []board { return []board{operators(), workspaces()} }

// write makes a dashboard, and puts it in its file.
func write(dir string, b board) error {
	made, err := b.build()
	if err != nil {
		return fmt.Errorf("make dashboard %s: %w", b.uid, err)
	}
	text, err := encode(made)
	if err != nil {
		return fmt.Errorf("encode dashboard %s: %w", b.uid, err)
	}
	return os.WriteFile(filepath.Join(dir, b.uid+".json"), text, 0o644)
}

// encode returns the JSON that Grafana imports: in lines, for differences, but not indented,
// as that doubles a ConfigMap of it.
func encode(made grafanaDashboard) ([]byte, error) {
	text, err := json.MarshalIndent(made, "", "")
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}
