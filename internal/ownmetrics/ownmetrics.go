// Package ownmetrics registers the metrics of the service's own components.
package ownmetrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Register registers collectors with reg. It ends at the first one that reg refuses, as
// another component has its name.
func Register(reg prometheus.Registerer, collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
