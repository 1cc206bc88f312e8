// Package helm renders the chart in agentstatsd as Helm would, for the plain manifests and
// the tests, and packages it.
package helm

import (
	"context"
	"fmt"
	"path"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	release "helm.sh/helm/v4/pkg/release/v1/util"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// Dir is the chart, from this directory.
const Dir = "agentstatsd"

// Cluster is what a chart sees of the cluster that it is rendered for. The zero value is an
// empty one.
type Cluster struct {
	// APIVersions are those that it has beside Kubernetes's own.
	APIVersions []string
	// Secrets are those that it has, by name, with their data.
	Secrets map[string]map[string]string
	// Replicas are those of its Deployments, by name.
	Replicas map[string]int64
}

// Rendered is what a release is made of.
type Rendered struct {
	// Manifests are the objects in the order in which Helm makes them, as YAML.
	Manifests []string
	Notes     string
}

// YAML returns all objects as one text of documents.
func (r *Rendered) YAML() string {
	return strings.Join(r.Manifests, "---\n")
}

// Render returns what a first installation with these values makes. withSchema: the schema
// checks the values before the templates do.
func Render(dir, name, namespace string, values map[string]any, cluster Cluster, withSchema bool) (*Rendered, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	return render(c, name, namespace, values, cluster, withSchema)
}

func render(c *chart.Chart, name, namespace string, values map[string]any, cluster Cluster, withSchema bool) (*Rendered, error) {
	capabilities := common.DefaultCapabilities.Copy()
	capabilities.APIVersions = append(capabilities.APIVersions, cluster.APIVersions...)
	options := common.ReleaseOptions{Name: name, Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValuesWithSchemaValidation(c, values, options, capabilities, !withSchema)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	files, err := engine.RenderWithClientProvider(c, all, &cluster)
	if err != nil {
		return nil, fmt.Errorf("render: %w", err)
	}
	r := new(Rendered)
	for file, text := range files {
		if path.Base(file) == "NOTES.txt" {
			r.Notes = text
		}
		if !strings.HasSuffix(file, ".yaml") {
			delete(files, file)
		}
	}
	hooks, manifests, err := release.SortManifests(files, nil, release.InstallOrder)
	if err != nil {
		return nil, fmt.Errorf("sort manifests: %w", err)
	}
	if len(hooks) > 0 {
		return nil, fmt.Errorf("want no hooks, got %d", len(hooks))
	}
	for _, m := range manifests {
		if text := strings.TrimSpace(m.Content); text != "" {
			r.Manifests = append(r.Manifests, text+"\n")
		}
	}
	return r, nil
}

// GetClientFor implements engine.ClientProvider: lookup finds Secrets and Deployments.
func (c *Cluster) GetClientFor(apiVersion, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	switch apiVersion + " " + kind {
	case "v1 Secret":
		return client{get: c.secret}, true, nil
	case "apps/v1 Deployment":
		return client{get: c.deployment}, true, nil
	}
	return nil, false, fmt.Errorf("look up %s %s: want a Secret of v1 or a Deployment of apps/v1", apiVersion, kind)
}

// client reads the objects of a kind, in any namespace. Nothing else of a client is used.
type client struct {
	dynamic.NamespaceableResourceInterface
	get func(name string) (fields map[string]any, ok bool)
}

// Namespace implements dynamic.NamespaceableResourceInterface.
func (c client) Namespace(string) dynamic.ResourceInterface { return c }

// Get implements dynamic.ResourceInterface.
func (c client) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	fields, ok := c.get(name)
	if !ok {
		return nil, errors.NewNotFound(schema.GroupResource{}, name)
	}
	return &unstructured.Unstructured{Object: fields}, nil
}

func (c *Cluster) secret(name string) (map[string]any, bool) {
	data, ok := c.Secrets[name]
	values := make(map[string]any)
	for key, value := range data {
		values[key] = value
	}
	return map[string]any{"apiVersion": "v1", "kind": "Secret", "data": values}, ok
}

func (c *Cluster) deployment(name string) (map[string]any, bool) {
	replicas, ok := c.Replicas[name]
	return map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicas": replicas}}, ok
}
