package main

import (
	"fmt"
	"strings"
)

// service returns an expression with the variables of the operators' dashboard in place
// of each @ in braces.
func service(expr string) string {
	return strings.ReplaceAll(expr, "@", `namespace=~"$namespace", job=~"$job", instance=~"$instance"`)
}

// q is a query of the operators' dashboard.
func q(expr, legend string) query { return query{service(expr), legend} }

// perSecond is how much a counter of the service grows in a second, by labels. Without
// labels it is that of all replicas.
func perSecond(counter, by string) string {
	return aggregated(fmt.Sprintf("rate(%s[$__rate_interval])", selected(counter)), by)
}

// within is how much a counter of the service grew in the time range that is shown.
func within(counter, by string) string {
	return aggregated(fmt.Sprintf("increase(%s[$__range])", selected(counter)), by)
}

// selected adds the variables to a name, or to the matchers of one.
func selected(name string) string {
	if head, rest, ok := strings.Cut(name, "{"); ok {
		return head + "{@, " + rest
	}
	return name + "{@}"
}

// grown is how much a counter of the service grew between two points of a line.
func grown(counter string) string {
	return aggregated(fmt.Sprintf("increase(%s[$__rate_interval])", selected(counter)), "")
}

func aggregated(expr, by string) string {
	if by == "" {
		return "sum(" + expr + ")"
	}
	return fmt.Sprintf("sum by (%s) (%s)", by, expr)
}

// quantile is that of a histogram of the service, by labels beside le.
func quantile(share float64, histogram, by string) string {
	labels := "le"
	if by != "" {
		labels += ", " + by
	}
	return fmt.Sprintf("histogram_quantile(%v, %s)", share, perSecond(withSuffix(histogram, "_bucket"), labels))
}

// withSuffix adds a suffix to the name before the matchers.
func withSuffix(name, suffix string) string {
	head, rest, ok := strings.Cut(name, "{")
	if !ok {
		return name + suffix
	}
	return head + suffix + "{" + rest
}

// top keeps the ten largest.
func top(expr string) string { return "topk(10, " + expr + ")" }
