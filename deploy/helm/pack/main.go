// Command pack writes the chart as the archive of a release, with its version.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
)

func main() {
	var p packing
	flag.StringVar(&p.chart, "chart", "helm/agentstatsd", "the chart")
	flag.StringVar(&p.version, "version", "", "its version and that of the program, such as v1.2.3")
	flag.Int64Var(&p.created, "created", 0, "seconds since 1970 that the files are dated")
	flag.StringVar(&p.output, "output", "", "the directory for the archive")
	flag.Parse()
	path, err := p.run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "error: %s\n", err)
		os.Exit(1)
	}
	fmt.Println(path)
}

// packing is what is written where.
type packing struct {
	chart, version, output string
	created                int64
}

// run writes the archive and returns its path. The same input gives the same bytes.
func (p *packing) run() (string, error) {
	version, ok := strings.CutPrefix(p.version, "v")
	if !ok {
		return "", fmt.Errorf("version: want one such as v1.2.3, got %q", p.version)
	}
	created := time.Unix(p.created, 0).UTC()
	pack := action.NewPackage()
	pack.Version, pack.AppVersion = version, p.version // as the image is tagged
	pack.Destination = p.output
	pack.SourceDateEpoch = &created
	path, err := pack.Run(p.chart, nil)
	if err != nil {
		return "", fmt.Errorf("package chart: %w", err)
	}
	return path, nil
}
