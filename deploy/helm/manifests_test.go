package helm

import (
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/yannh/kubeconform/pkg/validator"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// schemas are those of kubeconform, from this directory.
const schemas = "../kubernetes/schemas/{{.ResourceKind}}{{.KindSuffix}}.json"

// conform keeps the schemas that it has read.
var conform = sync.OnceValues(func() (validator.Validator, error) {
	return validator.New([]string{schemas}, validator.Opts{Strict: true})
})

// invalid returns what kubeconform finds in a text of documents.
func invalid(t *testing.T, text string) []string {
	t.Helper()
	v, err := conform()
	require.NoError(t, err)
	var found []string
	checked := 0
	for _, result := range v.Validate("", io.NopCloser(strings.NewReader(text))) {
		switch result.Status {
		case validator.Valid:
			checked++
		case validator.Empty:
		default:
			found = append(found, result.Err.Error())
		}
	}
	require.Positive(t, checked+len(found))
	return found
}

// Kubernetes takes all that is rendered; a field that it would drop is found.
func TestManifestsAreValid(t *testing.T) {
	kinds := make(map[string]bool)
	for _, file := range valueFiles(t) {
		for _, m := range renderValues(t, readValues(t, file)).Manifests {
			require.Empty(t, invalid(t, m), "%s: %s", file, m)
			kind := kindOf(t, m)
			if kinds[kind] {
				continue
			}
			kinds[kind] = true
			wrong := m + "misspelt: 1\n"
			require.Len(t, invalid(t, wrong), 1, kind)
			require.Contains(t, invalid(t, wrong)[0], "additional properties 'misspelt' not allowed", kind)
		}
	}
	require.Equal(t, []string{
		"Certificate", "ConfigMap", "Deployment", "HTTPRoute", "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "PodDisruptionBudget",
		"PodMonitor", "PrometheusRule", "ScrapeConfig", "Secret", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet",
	}, slices.Sorted(maps.Keys(kinds)))
}

// kindOf returns the kind of a manifest.
func kindOf(t *testing.T, manifest string) string {
	t.Helper()
	var m metav1.TypeMeta
	require.NoError(t, yaml.Unmarshal([]byte(manifest), &m))
	return m.Kind
}

// all returns the objects of a kind, decoded as Kubernetes's own types.
func all[T any](t *testing.T, r *Rendered, kind string) []T {
	t.Helper()
	var found []T
	for _, m := range r.Manifests {
		if kindOf(t, m) == kind {
			var object T
			require.NoError(t, yaml.UnmarshalStrict([]byte(m), &object))
			found = append(found, object)
		}
	}
	return found
}

// workload is what runs pods.
type workload struct {
	name     string
	selector map[string]string
	template corev1.PodTemplateSpec
	claims   []corev1.PersistentVolumeClaim
}

func workloads(t *testing.T, r *Rendered) []workload {
	t.Helper()
	var found []workload
	for _, d := range all[appsv1.Deployment](t, r, "Deployment") {
		found = append(found, workload{d.Name, d.Spec.Selector.MatchLabels, d.Spec.Template, nil})
	}
	for _, s := range all[appsv1.StatefulSet](t, r, "StatefulSet") {
		found = append(found, workload{s.Name, s.Spec.Selector.MatchLabels, s.Spec.Template, s.Spec.VolumeClaimTemplates})
	}
	require.NotEmpty(t, found)
	return found
}

// selectedBy returns the only workload of which a selector takes the pods.
func selectedBy(t *testing.T, all []workload, selector map[string]string) workload {
	t.Helper()
	require.NotEmpty(t, selector)
	var found []workload
	for _, w := range all {
		if labels.SelectorFromSet(selector).Matches(labels.Set(w.template.Labels)) {
			found = append(found, w)
		}
	}
	require.Len(t, found, 1, "%v", selector)
	return found[0]
}

// portsOf returns the ports of a pod by their names.
func portsOf(t *testing.T, w workload) map[string]int32 {
	t.Helper()
	ports := make(map[string]int32)
	for _, p := range w.template.Spec.Containers[0].Ports {
		require.NotContains(t, ports, p.Name)
		ports[p.Name] = p.ContainerPort
	}
	return ports
}

// What one manifest names, another has.
func TestManifestsFitTogether(t *testing.T) {
	for _, file := range valueFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			r := renderValues(t, readValues(t, file))
			pods := workloads(t, r)
			for _, w := range pods {
				selectedBy(t, pods, w.selector)
				requireMounts(t, w)
				requireProbes(t, w)
				requireConfined(t, w)
				requireOwnNames(t, r, w)
			}
			for _, s := range all[corev1.Service](t, r, "Service") {
				if s.Name == "coder-metrics" { // of pods that are not the chart's
					continue
				}
				ports := portsOf(t, selectedBy(t, pods, s.Spec.Selector))
				for _, p := range s.Spec.Ports {
					require.Equal(t, p.Port, ports[p.TargetPort.StrVal], s.Name)
				}
				require.Equal(t, strings.HasSuffix(s.Name, "-metrics"), s.Spec.ClusterIP == corev1.ClusterIPNone, s.Name)
			}
			for _, p := range all[policyv1.PodDisruptionBudget](t, r, "PodDisruptionBudget") {
				require.Equal(t, selectedBy(t, pods, p.Spec.Selector.MatchLabels).name, p.Name)
			}
			requireBackends(t, r)
		})
	}
}

// requireMounts: each volume is there and used.
func requireMounts(t *testing.T, w workload) {
	t.Helper()
	volumes := make(map[string]bool)
	for _, v := range w.template.Spec.Volumes {
		volumes[v.Name] = false
	}
	for _, c := range w.claims {
		volumes[c.Name] = false
	}
	paths := make(map[string]bool)
	for _, c := range w.template.Spec.Containers {
		for _, m := range c.VolumeMounts {
			require.Contains(t, volumes, m.Name)
			volumes[m.Name] = true
			paths[m.MountPath] = true
		}
	}
	for name, used := range volumes {
		require.True(t, used, "the volume %s is mounted nowhere", name)
	}
	// Each file of an argument is in a volume.
	for _, arg := range w.template.Spec.Containers[0].Args {
		for _, file := range regexp.MustCompile(`/(?:etc|var)/[^&?]+`).FindAllString(arg, -1) {
			require.True(t, paths[filepath.Dir(file)], "%s is on no volume", arg)
		}
	}
}

// requireProbes: they ask a port that has neither TLS nor passwords.
func requireProbes(t *testing.T, w workload) {
	t.Helper()
	c := w.template.Spec.Containers[0]
	for path, p := range map[string]*corev1.Probe{"/-/healthy": c.LivenessProbe, "/-/ready": c.ReadinessProbe} {
		require.Equal(t, path, p.HTTPGet.Path)
		require.Equal(t, "probes", p.HTTPGet.Port.StrVal)
		require.Empty(t, p.HTTPGet.Scheme)
	}
	require.Equal(t, "/-/healthy", c.StartupProbe.HTTPGet.Path)
	require.EqualValues(t, 2116, portsOf(t, w)["probes"])
	require.Contains(t, c.Args, "--probe-address=:2116")
}

// requireConfined: pods have no right that they do not need.
func requireConfined(t *testing.T, w workload) {
	t.Helper()
	pod := w.template.Spec
	require.False(t, *pod.AutomountServiceAccountToken)
	require.False(t, *pod.EnableServiceLinks)
	require.True(t, *pod.SecurityContext.RunAsNonRoot)
	require.EqualValues(t, 65532, *pod.SecurityContext.RunAsUser)
	require.EqualValues(t, 65532, *pod.SecurityContext.FSGroup)
	require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, pod.SecurityContext.SeccompProfile.Type)
	for _, c := range pod.Containers {
		require.True(t, *c.SecurityContext.ReadOnlyRootFilesystem)
		require.False(t, *c.SecurityContext.AllowPrivilegeEscalation)
		require.Equal(t, []corev1.Capability{"ALL"}, c.SecurityContext.Capabilities.Drop)
		require.NotEmpty(t, c.Resources.Limits.Memory().String())
	}
}

// requireOwnNames: what the release makes itself is what its pods use.
func requireOwnNames(t *testing.T, r *Rendered, w workload) {
	t.Helper()
	maps := make(map[string]bool)
	for _, m := range all[corev1.ConfigMap](t, r, "ConfigMap") {
		maps[m.Name] = true
	}
	secrets := make(map[string]corev1.Secret)
	for _, s := range all[corev1.Secret](t, r, "Secret") {
		secrets[s.Name] = s
	}
	for _, v := range w.template.Spec.Volumes {
		if v.ConfigMap != nil {
			require.True(t, maps[v.ConfigMap.Name], v.ConfigMap.Name)
		}
		if v.Secret != nil && strings.HasSuffix(v.Name, "-token") {
			require.EqualValues(t, 0o440, *v.Secret.DefaultMode)
			if s, own := secrets[v.Secret.SecretName]; own {
				require.Contains(t, s.Data, "token")
				require.Equal(t, "keep", s.Annotations["helm.sh/resource-policy"])
			}
		}
	}
	for _, c := range all[certificate](t, r, "Certificate") {
		if w.name == "agentstatsd" {
			require.True(t, slices.ContainsFunc(w.template.Spec.Volumes, func(v corev1.Volume) bool {
				return v.Secret != nil && v.Secret.SecretName == c.Spec.SecretName
			}))
		}
		require.Contains(t, c.Spec.DNSNames, "agentstatsd.coder.svc")
	}
	if name := w.template.Spec.ServiceAccountName; name != "default" {
		accounts := all[corev1.ServiceAccount](t, r, "ServiceAccount")
		require.Len(t, accounts, 1)
		require.Equal(t, accounts[0].Name, name)
	}
}

// certificate is what is read of one of cert-manager's.
type certificate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		SecretName string   `json:"secretName"`
		DNSNames   []string `json:"dnsNames"`

		Duration, RenewBefore string
		PrivateKey, IssuerRef map[string]string
		Usages                []string
	} `json:"spec"`
}

// agentsPath is the one path that goes to a bridge.
const agentsPath = "/api/v2/workspaceagents/me/rpc"

// requireBackends: the one path, exactly, leads to the bridge's Service.
func requireBackends(t *testing.T, r *Rendered) {
	t.Helper()
	for _, i := range all[networkingv1.Ingress](t, r, "Ingress") {
		require.Len(t, i.Spec.Rules, 1)
		require.Len(t, i.Spec.Rules[0].HTTP.Paths, 1)
		p := i.Spec.Rules[0].HTTP.Paths[0]
		require.Equal(t, agentsPath, p.Path)
		require.Equal(t, networkingv1.PathTypeExact, *p.PathType)
		requireService(t, r, p.Backend.Service.Name, p.Backend.Service.Port.Name)
	}
	for _, m := range r.Manifests {
		if kindOf(t, m) != "HTTPRoute" {
			continue
		}
		var route struct {
			Spec struct {
				Rules []struct {
					Matches     []struct{ Path struct{ Type, Value string } }
					BackendRefs []struct {
						Name string
						Port int32
					}
				}
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(m), &route))
		rule := route.Spec.Rules[0]
		require.Equal(t, "Exact", rule.Matches[0].Path.Type)
		require.Equal(t, agentsPath, rule.Matches[0].Path.Value)
		require.Equal(t, requireService(t, r, rule.BackendRefs[0].Name, "http-agents"), rule.BackendRefs[0].Port)
	}
}

// requireService returns the port of a Service with this name.
func requireService(t *testing.T, r *Rendered, name, port string) int32 {
	t.Helper()
	for _, s := range all[corev1.Service](t, r, "Service") {
		for _, p := range s.Spec.Ports {
			if s.Name == name && p.Name == port {
				return p.Port
			}
		}
	}
	require.Fail(t, "there is no such Service", "%s %s", name, port)
	return 0
}

// monitor is what is read of a ServiceMonitor or a PodMonitor.
type monitor struct {
	Metadata metav1.ObjectMeta
	Spec     struct {
		JobLabel                                        string
		Selector                                        metav1.LabelSelector
		NamespaceSelector                               struct{ MatchNames []string }
		Endpoints, PodMetricsEndpoints                  []struct{ Port, Path, Scheme string }
		ScrapeProtocols                                 []string
		ScrapeNativeHistograms, ScrapeClassicHistograms bool
	}
}

// Each pod is scraped once, with the job's name that all share, and by what a
// kube-prometheus-stack selects.
func TestMonitors(t *testing.T) {
	for kind, values := range map[string]string{"ServiceMonitor": "single-full", "PodMonitor": "replicated-full"} {
		r := renderValues(t, readValues(t, "testdata/values/"+values+".yaml"))
		pods := workloads(t, r)
		monitors := ofKind[monitor](t, r, kind)
		require.Len(t, monitors, 1)
		m := monitors[0]
		require.Equal(t, "kube-prometheus-stack", m.Metadata.Labels["release"])
		require.Equal(t, []string{"PrometheusProto", "PrometheusText0.0.4"}, m.Spec.ScrapeProtocols)
		require.True(t, m.Spec.ScrapeNativeHistograms && m.Spec.ScrapeClassicHistograms)
		endpoint := append(m.Spec.Endpoints, m.Spec.PodMetricsEndpoints...)[0]
		require.Equal(t, "/metrics", endpoint.Path)
		selector := labels.SelectorFromSet(m.Spec.Selector.MatchLabels)
		if kind == "PodMonitor" {
			w := selectedBy(t, pods, m.Spec.Selector.MatchLabels)
			require.Contains(t, portsOf(t, w), endpoint.Port)
			require.Equal(t, "agentstatsd", w.template.Labels[m.Spec.JobLabel])
			require.Equal(t, "monitoring", m.Metadata.Namespace)
			require.Equal(t, []string{"coder"}, m.Spec.NamespaceSelector.MatchNames, "its pods are elsewhere")
			continue
		}
		var selected []corev1.Service
		for _, s := range all[corev1.Service](t, r, "Service") {
			if selector.Matches(labels.Set(s.Labels)) {
				selected = append(selected, s)
			}
		}
		require.Len(t, selected, 1, "the pod would be scraped twice")
		require.Equal(t, "agentstatsd", selected[0].Labels[m.Spec.JobLabel])
		requireService(t, r, selected[0].Name, endpoint.Port)
		require.Equal(t, "https", endpoint.Scheme, "it has a web configuration with TLS")
	}
}

// ofKind returns the objects of a kind of which we have no type: what is read of them.
func ofKind[T any](t *testing.T, r *Rendered, kind string) []T {
	t.Helper()
	var found []T
	for _, m := range r.Manifests {
		if kindOf(t, m) == kind {
			var object T
			require.NoError(t, yaml.Unmarshal([]byte(m), &object))
			found = append(found, object)
		}
	}
	return found
}

// A ScrapeConfig finds the pods of the service, and those of the bridge.
func TestScrapeConfigs(t *testing.T) {
	r := renderValues(t, readValues(t, "testdata/values/bridge.yaml"))
	configs := ofKind[struct {
		Spec struct {
			KubernetesSDConfigs []struct {
				Namespaces struct{ Names []string }
				Selectors  []struct{ Label string }
			}
			Relabelings []struct{ TargetLabel, Replacement, Regex string }
		}
	}](t, r, "ScrapeConfig")
	var jobs []string
	for _, c := range configs {
		selector, err := labels.ConvertSelectorToLabelsMap(c.Spec.KubernetesSDConfigs[0].Selectors[0].Label)
		require.NoError(t, err)
		w := selectedBy(t, workloads(t, r), selector)
		require.Equal(t, []string{"coder"}, c.Spec.KubernetesSDConfigs[0].Namespaces.Names)
		require.Contains(t, portsOf(t, w), c.Spec.Relabelings[0].Regex)
		require.Equal(t, "job", c.Spec.Relabelings[1].TargetLabel)
		require.Equal(t, w.name, c.Spec.Relabelings[1].Replacement)
		jobs = append(jobs, w.name)
	}
	require.ElementsMatch(t, []string{"agentstatsd", "agentstatsd-bridge"}, jobs)
}

// A NetworkPolicy lets through the ports of its pods, and what they dial, and nothing else.
func TestNetworkPolicies(t *testing.T) {
	for values, want := range map[string]map[string][]string{
		"single-full":     {"agentstatsd": nil},
		"replicated-full": {"agentstatsd": {"53 any", "53 any", "6432 ipBlock", "4222 any"}},
		"bridge":          {"agentstatsd": nil, "agentstatsd-bridge": {"53 any", "53 any", "2113 agentstatsd", "8080 coder", "2112 coder"}},
		"bridge-alone":    {"agentstatsd-bridge": {"53 any", "53 any", "2113 any", "8080 coder", "2112 coder"}},
	} {
		r := renderValues(t, readValues(t, "testdata/values/"+values+".yaml"))
		pods := workloads(t, r)
		policies := all[networkingv1.NetworkPolicy](t, r, "NetworkPolicy")
		require.Len(t, policies, len(want))
		for _, p := range policies {
			w := selectedBy(t, pods, p.Spec.PodSelector.MatchLabels)
			require.Equal(t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}, p.Spec.PolicyTypes)
			var in []string
			for _, rule := range p.Spec.Ingress {
				for _, port := range rule.Ports {
					in = append(in, port.Port.StrVal)
				}
			}
			require.ElementsMatch(t, slices.Collect(maps.Keys(portsOf(t, w))), in, values)
			var out []string
			for _, rule := range p.Spec.Egress {
				for _, port := range rule.Ports {
					out = append(out, port.Port.String()+" "+peer(rule.To))
				}
			}
			require.Equal(t, want[w.name], out, "%s %s", values, p.Name)
		}
	}
	// Whom gRPC is for, where agents are named: they, coderd, and nobody else.
	p := all[networkingv1.NetworkPolicy](t, renderValues(t, readValues(t, "testdata/values/single-full.yaml")), "NetworkPolicy")[0]
	require.Len(t, p.Spec.Ingress[0].From, 2)
	require.Equal(t, "workspaces", p.Spec.Ingress[0].From[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
	require.Equal(t, "coder", p.Spec.Ingress[0].From[1].PodSelector.MatchLabels["app.kubernetes.io/name"])
	require.Equal(t, "monitoring", p.Spec.Ingress[1].From[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
}

// peer names the first of peers.
func peer(peers []networkingv1.NetworkPolicyPeer) string {
	switch {
	case len(peers) == 0:
		return "any"
	case peers[0].IPBlock != nil:
		return "ipBlock"
	}
	return peers[0].PodSelector.MatchLabels["app.kubernetes.io/name"]
}
