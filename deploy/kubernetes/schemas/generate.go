//go:build ignore

// generate makes the schemas in this directory; README.md says of what.
//
//	go run generate.go SWAGGER_JSON CRD_YAML...
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// kinds are the definitions of Kubernetes that the manifests use, by file.
var kinds = map[string]string{
	"configmap-v1.json":                           "io.k8s.api.core.v1.ConfigMap",
	"deployment-apps-v1.json":                     "io.k8s.api.apps.v1.Deployment",
	"horizontalpodautoscaler-autoscaling-v2.json": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
	"ingress-networking-v1.json":                  "io.k8s.api.networking.v1.Ingress",
	"networkpolicy-networking-v1.json":            "io.k8s.api.networking.v1.NetworkPolicy",
	"persistentvolumeclaim-v1.json":               "io.k8s.api.core.v1.PersistentVolumeClaim",
	"poddisruptionbudget-policy-v1.json":          "io.k8s.api.policy.v1.PodDisruptionBudget",
	"secret-v1.json":                              "io.k8s.api.core.v1.Secret",
	"service-v1.json":                             "io.k8s.api.core.v1.Service",
	"serviceaccount-v1.json":                      "io.k8s.api.core.v1.ServiceAccount",
	"statefulset-apps-v1.json":                    "io.k8s.api.apps.v1.StatefulSet",
}

// resources are the versions of custom resources that the manifests use, by their kinds.
var resources = map[string]string{
	"Certificate":    "v1",
	"HTTPRoute":      "v1",
	"PodMonitor":     "v1",
	"PrometheusRule": "v1",
	"ScrapeConfig":   "v1alpha1",
	"ServiceMonitor": "v1",
}

// values are the definitions that the API reads from more than one JSON type.
var values = map[string]any{
	"io.k8s.apimachinery.pkg.util.intstr.IntOrString": object{"type": []any{"string", "integer"}},
	"io.k8s.apimachinery.pkg.api.resource.Quantity":   object{"type": []any{"string", "number"}},
}

const (
	refPrefix = "#/definitions/"
	// objectMeta is what a custom resource's schema leaves out.
	objectMeta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
)

type object = map[string]any

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("usage: go run generate.go SWAGGER_JSON CRD_YAML...")
	}
	var swagger struct{ Definitions object }
	read(os.Args[1], &swagger)
	for file, kind := range kinds {
		definitions := make(object)
		collect(swagger.Definitions, kind, definitions)
		root := definitions[kind].(object)
		delete(definitions, kind)
		root["definitions"] = definitions
		write(file, root)
	}

	for _, file := range os.Args[2:] {
		var crd definition
		read(file, &crd)
		custom(swagger.Definitions, &crd)
	}
}

// definition is what is read of a custom resource's definition.
type definition struct {
	Spec struct {
		Group    string
		Names    struct{ Kind string }
		Versions []struct {
			Name   string
			Schema struct {
				OpenAPIV3Schema object
			}
		}
	}
}

// custom writes the schema of a custom resource.
func custom(swagger object, crd *definition) {
	kind, version := crd.Spec.Names.Kind, resources[crd.Spec.Names.Kind]
	for _, v := range crd.Spec.Versions {
		if v.Name != version {
			continue
		}
		root := strict(v.Schema.OpenAPIV3Schema).(object)
		// What controllers write is in no manifest.
		delete(root["properties"].(object), "status")
		if required, ok := root["required"].([]any); ok {
			root["required"] = slices.DeleteFunc(required, func(name any) bool { return name == "status" })
		}
		definitions := make(object)
		collect(swagger, objectMeta, definitions)
		root["definitions"] = definitions
		root["properties"].(object)["metadata"] = object{"$ref": refPrefix + objectMeta}
		group, _, _ := strings.Cut(crd.Spec.Group, ".")
		write(strings.ToLower(fmt.Sprintf("%s-%s-%s.json", kind, group, version)), root)
		return
	}
	log.Fatalf("%s has no version %q", kind, version)
}

// collect copies the definition called name, and all that it refers to, to out.
func collect(from object, name string, out object) {
	if _, ok := out[name]; ok {
		return
	}
	if v, ok := values[name]; ok {
		out[name] = v
		return
	}
	out[name] = nil // ends the recursion of definitions that refer to themselves
	schema := strict(from[name]).(object)
	out[name] = schema
	walk(schema, func(s object) {
		if ref, ok := s["$ref"].(string); ok {
			collect(from, strings.TrimPrefix(ref, refPrefix), out)
		}
	})
}

func walk(v any, f func(object)) {
	switch v := v.(type) {
	case object:
		f(v)
		for _, child := range v {
			walk(child, f)
		}
	case []any:
		for _, child := range v {
			walk(child, f)
		}
	}
}

// strict returns a schema without prose and extensions, and with no room for
// properties that are not known. Only the names of properties are kept as they
// are: a property may be called description.
func strict(schema any) any {
	in, ok := schema.(object)
	if !ok {
		return schema
	}
	out := make(object)
	for key, v := range in {
		switch {
		case key == "description" || key == "default" || strings.HasPrefix(key, "x-kubernetes-"):
		case key == "properties":
			properties := make(object)
			for name, property := range v.(object) {
				properties[name] = strict(property)
			}
			out[key] = properties
		case key == "items" || key == "additionalProperties":
			out[key] = strict(v)
		case key == "anyOf" || key == "oneOf" || key == "allOf":
			list := make([]any, 0, len(v.([]any)))
			for _, s := range v.([]any) {
				list = append(list, strict(s))
			}
			out[key] = list
		default:
			out[key] = v
		}
	}
	if _, open := out["additionalProperties"]; !open && out["properties"] != nil {
		out["additionalProperties"] = false
	}
	return out
}

// read reads YAML, of which JSON is a part.
func read(path string, v any) {
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	if err := yaml.Unmarshal(data, v); err != nil {
		log.Fatal(fmt.Errorf("read %s: %w", path, err))
	}
}

func write(path string, schema object) {
	data, err := json.MarshalIndent(schema, "", " ")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		log.Fatal(err)
	}
}
