// Package deploy holds how the service is deployed: its image, packages, chart, rules
// and dashboards, the programs that make them, and their tests. It is a module of its
// own, so that what they need is no requirement of the service.
package deploy
