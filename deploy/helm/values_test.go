package helm

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/strvals"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// parse returns the values that a text of YAML is.
func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var values map[string]any
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &values))
	return values
}

const (
	single     = "tls: {existingSecret: a}\n"
	replicated = "shape: replicated\ndatabase: {existingSecret: a}\n" + single
	alone      = "shape: none\nbridge: {enabled: true, tls: {allowPlaintext: true}, config: {bridge: {upstream: http://a}}, serviceAddress: {address: a:1, tokenSecret: b}}\n"
)

// What does not go together is refused: by the schema, which names the field, and without it
// by a sentence.
func TestRefusedValues(t *testing.T) {
	for name, tc := range map[string]struct{ values, schema, sentence string }{
		"unknown value":             {single + "replica: 3", "additional properties 'replica' not allowed", ""},
		"unknown nested value":      {single + "metrics: {monitors: ServiceMonitor}", "additional properties 'monitors' not allowed", ""},
		"unknown option":            {single + "config: {grpc: {drain_timout: 10s}}", "at '/config/grpc': additional properties 'drain_timout' not allowed", "config.grpc.drain_timout: there is no such option: see docs/configuration.md"},
		"unknown group":             {single + "config: {grcp: {drain_timeout: 10s}}", "at '/config': additional properties 'grcp' not allowed", "config.grcp.drain_timeout: there is no such option"},
		"option of a service":       {strings.Replace(alone, "config: {", "config: {grpc: {drain_timeout: 1s}, ", 1), "at '/bridge/config': additional properties 'grpc' not allowed", "bridge.config.grpc.drain_timeout: there is no such option"},
		"option's type":             {single + "config: {grpc: {reflection: yes please}}", "at '/config/grpc/reflection': got string, want boolean", ""},
		"option's range":            {single + "config: {metadata: {batch_size: 10001}}", "at '/config/metadata/batch_size': maximum: got 10,001, want 10,000", ""},
		"option below its range":    {single + "config: {storage: {database_max_conns: 1}}", "at '/config/storage/database_max_conns': minimum: got 1, want 2", ""},
		"option's duration":         {single + "config: {grpc: {drain_timeout: 10}}", "at '/config/grpc/drain_timeout': got number, want string", ""},
		"option's text of duration": {single + "config: {grpc: {drain_timeout: ten seconds}}", "at '/config/grpc/drain_timeout': 'ten seconds' does not match pattern", ""},
		"option's bytes":            {single + "config: {grpc: {max_message_bytes: 64KB}}", "at '/config/grpc/max_message_bytes': '64KB' does not match pattern", ""},
		"option's choice":           {single + "config: {logging: {level: loud}}", "at '/config/logging/level': value must be one of 'debug', 'info', 'warn', 'error'", ""},
		"option of the chart":       {single + "config: {storage: {database_url: postgres://u:p@h/d}}", "", "config.storage.database_url is set by the chart: give database.existingSecret, as it has a password"},
		"plaintext by an option":    {single + "config: {grpc: {allow_plaintext: true}}", "", "config.grpc.allow_plaintext is set by the chart: give tls.allowPlaintext"},
		"unknown shape":             {single + "shape: triple", "at '/shape': value must be one of 'single', 'replicated', 'none'", `shape: want single, replicated or none, got "triple"`},

		"replicas over SQLite":       {single + "replicas: 3", "at '/replicas': value must be one of <nil>, 1", "replicas: 3 with shape single, whose SQLite takes one process. For several give shape: replicated and database.existingSecret"},
		"autoscaling over SQLite":    {single + "autoscaling: {enabled: true}", "at '/autoscaling/enabled': value must be false", "autoscaling.enabled: shape single has one pod"},
		"PostgreSQL with single":     {single + "database: {existingSecret: a}", "at '/database/existingSecret': value must be ''", "shape single is over SQLite. For PostgreSQL give shape: replicated"},
		"NATS with single":           {single + "pubsub: {existingSecret: a}", "at '/pubsub/existingSecret': value must be ''", "shape single is over SQLite"},
		"replicated without any":     {single + "shape: replicated", "at '/database/existingSecret': minLength: got 0, want 1", "database.existingSecret: shape replicated needs a PostgreSQL: name a Secret whose key url has its URL"},
		"volume with replicated":     {replicated + "persistence: {size: 10Gi}", "at '/persistence/size': value must be ''", "persistence: shape replicated has no volume, as all is in PostgreSQL"},
		"old volume with replicated": {replicated + "persistence: {existingClaim: a}", "at '/persistence/existingClaim': value must be ''", "persistence: shape replicated has no volume"},
		"no replica":                 {replicated + "replicas: 0", "at '/replicas': minimum: got 0, want 1", ""},

		"plaintext by accident":       {"shape: single", "", "tls: the gRPC listener needs a certificate: give tls.existingSecret or tls.certManager.enabled, or on purpose tls.allowPlaintext"},
		"two certificates":            {"tls: {existingSecret: a, certManager: {enabled: true, issuerRef: {name: b}}}", "", "tls: want one of tls.existingSecret, tls.certManager.enabled and tls.allowPlaintext, got tls.existingSecret, tls.certManager.enabled"},
		"plaintext and a certificate": {"tls: {existingSecret: a, allowPlaintext: true}", "", "got tls.existingSecret, tls.allowPlaintext"},
		"issuer without name":         {"tls: {certManager: {enabled: true}}", "", "tls.certManager.issuerRef.name: cert-manager needs to know who issues the certificate"},
		"client CA without name":      {"tls: {existingSecret: a, clientCA: {existingSecret: b}}", "", "tls.clientCA: existingSecret and san need each other"},
		"client CA without TLS":       {"tls: {allowPlaintext: true, clientCA: {existingSecret: b, san: c}}", "", "tls.clientCA: client certificates need TLS"},

		"nothing at all":           {"shape: none", "at '/bridge/enabled': value must be true", "shape: none without bridge.enabled is nothing at all"},
		"bridge of nothing":        {"shape: none\nbridge: {enabled: true, tls: {allowPlaintext: true}}", "at '/bridge/serviceAddress/address': minLength: got 0, want 1", "bridge.serviceAddress: with shape none the bridge needs the address of a service"},
		"bridge of another":        {single + "bridge: {serviceAddress: {address: a:1}}", "at '/bridge/serviceAddress/address': value must be ''", "For another one give shape: none"},
		"bridge without TLS":       {single + "bridge: {enabled: true, config: {bridge: {upstream: http://a}}}", "", "bridge.tls: agents' connections come in the clear from an ingress that ends TLS: say so by bridge.tls.allowPlaintext"},
		"bridge without work":      {single + "bridge: {enabled: true, tls: {allowPlaintext: true}}", "", "the bridge has nothing to do"},
		"bridge without token":     {single + "bridge: {enabled: true, tls: {allowPlaintext: true}, config: {bridge: {coder_url: http://a}}}", "", "bridge.apiToken.existingSecret and bridge.config.bridge.coder_url need each other"},
		"bridge's option":          {single + "bridge: {config: {bridge: {sync_intervall: 5m}}}", "at '/bridge/config/bridge': additional properties 'sync_intervall' not allowed", ""},
		"bridge's reserved option": {single + "bridge: {enabled: true, tls: {allowPlaintext: true}, config: {bridge: {upstream: http://a, service_url: agentstatsd://b}}}", "", "bridge.config.bridge.service_url is set by the chart"},
		"ingress without host":     {single + "bridge: {enabled: true, tls: {allowPlaintext: true}, config: {bridge: {upstream: http://a}}, ingress: {enabled: true}}", "", "bridge.ingress.host: want the host of Coder's access URL"},

		"unknown monitor":      {single + "metrics: {monitor: Probe}", "at '/metrics/monitor': value must be one of '', 'ServiceMonitor', 'PodMonitor', 'ScrapeConfig'", `metrics.monitor: want ServiceMonitor, PodMonitor, ScrapeConfig or nothing, got "Probe"`},
		"reloader and a web":   {single + "configReloader: {enabled: true}\nwebConfig: {existingSecret: a}", "", "configReloader.enabled: the sidecar has no password"},
		"database in extraEnv": {single + "extraEnv: [{name: AGENTSTATSD_DATABASE_URL, value: postgres://u:p@h/d}]", "", "extraEnv: AGENTSTATSD_DATABASE_URL is the chart's: give database.existingSecret"},
	} {
		t.Run(name, func(t *testing.T) {
			values := parse(t, tc.values)
			_, err := Render(Dir, "agentstatsd", "coder", values, Cluster{}, true)
			switch {
			case tc.schema != "":
				require.ErrorContains(t, err, "don't meet the specifications of the schema")
				require.ErrorContains(t, err, tc.schema)
			case tc.sentence != "":
				require.ErrorContains(t, err, tc.sentence)
			default:
				require.Fail(t, "nothing is expected")
			}
			if tc.sentence != "" {
				_, err := Render(Dir, "agentstatsd", "coder", values, Cluster{}, false)
				require.ErrorContains(t, err, tc.sentence)
			}
		})
	}
}

// A token that the chart made stays over upgrades, one that is missing is made, each time
// another one.
func TestTokensSurviveUpgrades(t *testing.T) {
	values := parse(t, single+"operatorToken: {enabled: true}")
	cluster := Cluster{Secrets: make(map[string]map[string]string)}
	install := func() map[string]map[string]string {
		r, err := Render(Dir, "agentstatsd", "coder", values, cluster, true)
		require.NoError(t, err)
		made := make(map[string]map[string]string)
		for _, s := range all[corev1.Secret](t, r, "Secret") {
			made[s.Name] = map[string]string{"token": base64.StdEncoding.EncodeToString(s.Data["token"])}
			require.Len(t, s.Data["token"], 48)
		}
		return made
	}
	first := install()
	require.Len(t, first, 2)
	require.NotEqual(t, first, install(), "nothing is there yet")
	cluster.Secrets = maps.Clone(first)
	require.Equal(t, first, install(), "an upgrade")
	delete(cluster.Secrets, "agentstatsd-operator-token")
	second := install()
	require.Equal(t, first["agentstatsd-coderd-token"], second["agentstatsd-coderd-token"])
	require.NotEqual(t, first["agentstatsd-operator-token"], second["agentstatsd-operator-token"])
}

// What README.md has whoever comes from a Deployment over SQLite give keeps the volume and the
// token, and makes nothing that is there: Helm refuses what it has not made.
func TestFromDeployment(t *testing.T) {
	text, err := os.ReadFile("../kubernetes/README.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## From the manifests of a Deployment over SQLite\n")
	require.True(t, ok)
	values := parse(t, single)
	for _, value := range regexp.MustCompile("`([A-Za-z.]+): ([a-z-]+)`").FindAllStringSubmatch(section, -1) {
		require.NoError(t, strvals.ParseInto(value[1]+"="+value[2], values))
	}
	r := renderValues(t, values)
	require.Empty(t, all[corev1.Secret](t, r, "Secret"))
	claims := make(map[string]bool)
	w := workloads(t, r)[0]
	require.Empty(t, w.claims)
	for _, v := range w.template.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			claims[v.PersistentVolumeClaim.ClaimName] = true
		}
		if v.Name == "coderd-token" {
			require.Equal(t, "agentstatsd-coderd-token", v.Secret.SecretName)
		}
	}
	require.Equal(t, map[string]bool{"agentstatsd-data": true}, claims)
}

// A change of the configuration replaces the pods, but for what is reloaded by the sidecar.
func TestConfigChecksum(t *testing.T) {
	checksum := func(values string) string {
		r := renderValues(t, parse(t, values))
		return workloads(t, r)[0].template.Annotations["checksum/config"]
	}
	reloader := single + "configReloader: {enabled: true}\n"
	require.NotEqual(t, checksum(single), checksum(single+"config: {agents: {max_agents: 5}}"))
	require.Equal(t, checksum(reloader), checksum(reloader+"config: {agents: {max_agents: 5}}"))
	require.NotEqual(t, checksum(reloader), checksum(reloader+"config: {grpc: {drain_timeout: 11s}}"))
}

// The grace period has room for the whole stop.
func TestGracePeriods(t *testing.T) {
	grace := func(values string) (service int64) {
		return *workloads(t, renderValues(t, parse(t, values)))[0].template.Spec.TerminationGracePeriodSeconds
	}
	require.EqualValues(t, 10+40, grace(single))
	require.EqualValues(t, 90+40, grace(single+"config: {grpc: {drain_timeout: 1m30s}}"))
	require.EqualValues(t, 2+40, grace(single+"config: {grpc: {drain_timeout: 1500ms}}"))
	require.EqualValues(t, 3600+40, grace(single+"config: {grpc: {drain_timeout: 1h}}"))
	require.EqualValues(t, 7, grace(single+"terminationGracePeriodSeconds: 7"))
	require.EqualValues(t, 2+10+40, grace(replicated), "and the sleep before it")
	require.EqualValues(t, 5+10+40, grace(replicated+"preStopSleepSeconds: 5"))
	require.EqualValues(t, 5+60+10+10, grace(alone))
	require.EqualValues(t, 0+120+10+10, grace(strings.Replace(alone, "upstream:", "drain_delay: 0s, drain_timeout: 2m, upstream:", 1)))
}

// Replicas are replaced one by one, a new one first; single has one pod whatever happens.
func TestShapes(t *testing.T) {
	d := all[appsv1.Deployment](t, renderValues(t, parse(t, replicated)), "Deployment")[0]
	require.EqualValues(t, 3, *d.Spec.Replicas)
	require.Equal(t, appsv1.RollingUpdateDeploymentStrategyType, d.Spec.Strategy.Type)
	require.Zero(t, d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue())
	require.Equal(t, 1, d.Spec.Strategy.RollingUpdate.MaxSurge.IntValue())
	require.EqualValues(t, 2+10, d.Spec.MinReadySeconds, "the agents of one pod at a time go elsewhere")
	require.Len(t, d.Spec.Template.Spec.TopologySpreadConstraints, 2)
	require.Equal(t, d.Spec.Selector.MatchLabels, d.Spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector.MatchLabels)

	r := renderValues(t, parse(t, replicated+"autoscaling: {enabled: true}"))
	require.Nil(t, all[appsv1.Deployment](t, r, "Deployment")[0].Spec.Replicas, "the autoscaler sets it")
	for name, want := range map[string]*int32{"agentstatsd": new(int32(7)), "agentstatsd-bridge": nil} {
		r, err := Render(Dir, "agentstatsd", "coder", parse(t, replicated+"replicas: 5\nautoscaling: {enabled: true}"), Cluster{Replicas: map[string]int64{name: 7}}, true)
		require.NoError(t, err)
		require.Equal(t, want, all[appsv1.Deployment](t, r, "Deployment")[0].Spec.Replicas, "it goes on with what it has: %s", name)
	}
	h := all[autoscalingv2.HorizontalPodAutoscaler](t, r, "HorizontalPodAutoscaler")[0]
	require.Equal(t, d.Name, h.Spec.ScaleTargetRef.Name)
	require.Equal(t, "agentstatsd_sessions", h.Spec.Metrics[0].Pods.Metric.Name)
	require.EqualValues(t, 5000, h.Spec.Metrics[0].Pods.Target.AverageValue.Value())

	r, err := Render(Dir, "agentstatsd", "coder", parse(t, replicated), Cluster{Replicas: map[string]int64{"agentstatsd": 7}}, true)
	require.NoError(t, err)
	require.EqualValues(t, 3, *all[appsv1.Deployment](t, r, "Deployment")[0].Spec.Replicas, "without an autoscaler it has what values say")

	s := all[appsv1.StatefulSet](t, renderValues(t, parse(t, single+"replicas: 1")), "StatefulSet")[0]
	require.EqualValues(t, 1, *s.Spec.Replicas)
	require.Len(t, s.Spec.VolumeClaimTemplates, 1)
	require.Equal(t, "10Gi", s.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().String())
	s = all[appsv1.StatefulSet](t, renderValues(t, parse(t, single+"persistence: {existingClaim: old}")), "StatefulSet")[0]
	require.Empty(t, s.Spec.VolumeClaimTemplates)
	require.Equal(t, "old", s.Spec.Template.Spec.Volumes[3].PersistentVolumeClaim.ClaimName)
}

// The notes say whether somebody scrapes it.
func TestNotes(t *testing.T) {
	for name, tc := range map[string]struct {
		values, want string
		operator     bool
	}{
		"nobody":           {single, "NOBODY SCRAPES IT unless its configuration names it", false},
		"operator, untold": {single, "NOBODY SCRAPES IT: this cluster has a prometheus-operator", true},
		"no operator":      {single + "metrics: {monitor: PodMonitor}", "NOBODY SCRAPES IT: metrics.monitor is PodMonitor, and this cluster has no prometheus-operator", false},
		"operator":         {single + "metrics: {monitor: PodMonitor, release: prom}", "It has the label release: prom", true},
		"without label":    {single + "metrics: {monitor: PodMonitor}", "kube-prometheus-stack does not select it unless", true},
		"annotations":      {single + "metrics: {podAnnotations: true}", "Pods have the annotations", false},
		"token":            {single, "coderd's token is in the Secret agentstatsd-coderd-token, key token, made by this release", false},
		"URL":              {single, "agentstatsd://agentstatsd.coder.svc:2113?token_file=/etc/agentstatsd/token&ca_file=", false},
		"plaintext":        {"tls: {allowPlaintext: true}", "WITHOUT TLS", false},
		"bridge alone":     {alone, "a bridge of a service elsewhere", false},
	} {
		var cluster Cluster
		if tc.operator {
			cluster.APIVersions = []string{"monitoring.coreos.com/v1"}
		}
		r, err := Render(Dir, "agentstatsd", "coder", parse(t, tc.values), cluster, true)
		require.NoError(t, err)
		require.Contains(t, r.Notes, tc.want, name)
	}
}

// Whoever has a bridge is told of the key that its volume needs, by notes, README.md and
// values.yaml, unless it needs none.
func TestSecretWithoutAuthority(t *testing.T) {
	const bridge = "bridge: {enabled: true, tls: {allowPlaintext: true}, config: {bridge: {upstream: http://a}}}\n"
	for values, key := range map[string]string{
		single + bridge: "ca.crt",
		"tls: {existingSecret: a, caKey: b.crt}\n" + bridge: "b.crt",
		"tls: {existingSecret: a, caKey: \"\"}\n" + bridge:  "",
		"tls: {allowPlaintext: true}\n" + bridge:            "",
		single:                                              "",
		alone:                                               "",
	} {
		r := renderValues(t, parse(t, values))
		volumes := strings.Contains(r.YAML(), "\n              - key: "+key+"\n")
		require.Equal(t, key != "", strings.Contains(r.Notes, "stay in ContainerCreating"), values)
		if key != "" {
			require.True(t, volumes, "the bridge mounts it")
			require.Contains(t, r.Notes, "If the Secret a has no "+key+", as `kubectl create secret tls` and ACME make it")
		}
	}
	for _, file := range []string{"../kubernetes/README.md", filepath.Join(Dir, "values.yaml")} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(text), "the bridge's pods stay in ContainerCreating:", file)
	}
}

// Another release in the namespace has names and selectors of its own.
func TestReleasesDoNotMeet(t *testing.T) {
	values := readValues(t, "testdata/values/bridge.yaml")
	values["bridge"].(map[string]any)["coderdMetricsService"] = map[string]any{"enabled": false} // its name is given
	names := make(map[string]bool)
	for _, release := range []string{"agentstatsd", "stats", strings.Repeat("long", 13)} {
		r, err := Render(Dir, release, "coder", values, Cluster{}, true)
		require.NoError(t, err)
		for _, w := range workloads(t, r) {
			require.Equal(t, release, w.selector["app.kubernetes.io/instance"])
		}
		for _, m := range r.Manifests {
			var o struct{ Metadata struct{ Name string } }
			require.NoError(t, yaml.Unmarshal([]byte(m), &o))
			name := kindOf(t, m) + " " + o.Metadata.Name
			require.False(t, names[name], name)
			require.LessOrEqual(t, len(o.Metadata.Name), 63)
			names[name] = true
		}
	}
}

// The chart has the same rules and dashboards as are beside it.
func TestRulesAndDashboards(t *testing.T) {
	for dir, pattern := range map[string]string{"rules": "../prometheus/*.rules.yml", "dashboards": "../grafana/dashboards/*.json"} {
		sources, err := filepath.Glob(pattern)
		require.NoError(t, err)
		into := filepath.Join(Dir, "files", dir)
		copies, err := filepath.Glob(filepath.Join(into, "*"))
		require.NoError(t, err)
		if *update {
			require.NoError(t, os.MkdirAll(into, 0o755))
			for _, c := range copies {
				require.NoError(t, os.Remove(c))
			}
		} else {
			require.Len(t, copies, len(sources), "run make generate")
		}
		for _, source := range sources {
			text, err := os.ReadFile(source)
			require.NoError(t, err)
			requireFile(t, filepath.Join(into, filepath.Base(source)), string(text))
		}
	}
}
