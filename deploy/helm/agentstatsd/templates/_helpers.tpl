{{- define "agentstatsd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else if contains "agentstatsd" .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-agentstatsd" (.Release.Name | trunc 33 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- /* The name that app.kubernetes.io/name has; argument: root, part (service or bridge). */ -}}
{{- define "agentstatsd.partName" -}}
{{- eq .part "bridge" | ternary "agentstatsd-bridge" "agentstatsd" -}}
{{- end -}}

{{- define "agentstatsd.selector" -}}
app.kubernetes.io/name: {{ include "agentstatsd.partName" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "agentstatsd.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_") }}
{{ include "agentstatsd.selector" . }}
app.kubernetes.io/component: {{ .component | default .part }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/part-of: agentstatsd
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Labels of pods, which a new chart of the same version does not change. */ -}}
{{- define "agentstatsd.podLabels" -}}
{{ include "agentstatsd.selector" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: agentstatsd
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "agentstatsd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "agentstatsd.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "agentstatsd.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion | replace "+" "_") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The value of an option, given or by default; argument: root, part, key such as grpc.drain_timeout. */ -}}
{{- define "agentstatsd.option" -}}
{{- $known := index (.root.Files.Get "files/options.json" | fromJson) .part .key -}}
{{- $config := eq .part "bridge" | ternary .root.Values.bridge.config .root.Values.config -}}
{{- $path := splitList "." .key -}}
{{- $group := get $config (first $path) | default dict -}}
{{- hasKey $group (last $path) | ternary (get $group (last $path)) $known.default -}}
{{- end -}}

{{- /* A duration of Go, such as 1m30s, in whole seconds, rounded up. */ -}}
{{- define "agentstatsd.seconds" -}}
{{- $total := 0.0 -}}
{{- $units := dict "h" 3600.0 "m" 60.0 "s" 1.0 "ms" 0.001 "us" 0.000001 "µs" 0.000001 "ns" 0.000000001 -}}
{{- range regexFindAll "[0-9.]+[a-zµ]+" . -1 -}}
{{- $total = addf $total (mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[a-zµ]+$" .))) -}}
{{- end -}}
{{- ceil $total | int -}}
{{- end -}}

{{- /* Seconds that a stop takes at most; argument: root, part. */ -}}
{{- define "agentstatsd.stopSeconds" -}}
{{- $total := 0 -}}
{{- $keys := eq .part "bridge" | ternary (list "bridge.drain_delay" "bridge.drain_timeout" "bridge.close_timeout") (list "grpc.drain_timeout") -}}
{{- $root := .root -}}
{{- $part := .part -}}
{{- range $keys -}}
{{- $option := include "agentstatsd.option" (dict "root" $root "part" $part "key" .) -}}
{{- $total = add $total (include "agentstatsd.seconds" $option | int) -}}
{{- end -}}
{{- /* Behind the drain the service has up to 38 s for its last writes, the bridge 5 s: service.go, bridge.go. */ -}}
{{- add $total (eq .part "bridge" | ternary 10 40) -}}
{{- end -}}

{{- /* Seconds after which the agents of a pod that is asked to stop have gone; argument: root. */ -}}
{{- define "agentstatsd.minReadySeconds" -}}
{{- if kindIs "invalid" .Values.rollout.minReadySeconds -}}
{{- $drain := include "agentstatsd.option" (dict "root" . "part" "service" "key" "grpc.drain_timeout") -}}
{{- add .Values.preStopSleepSeconds (include "agentstatsd.seconds" $drain | int) -}}
{{- else -}}
{{- .Values.rollout.minReadySeconds | int -}}
{{- end -}}
{{- end -}}

{{- define "agentstatsd.gracePeriod" -}}
{{- $given := eq .part "bridge" | ternary .root.Values.bridge.terminationGracePeriodSeconds .root.Values.terminationGracePeriodSeconds -}}
{{- $sleep := and (eq .part "service") (eq .root.Values.shape "replicated") | ternary .root.Values.preStopSleepSeconds 0 -}}
{{- if kindIs "invalid" $given -}}
{{- add (include "agentstatsd.stopSeconds" . | int) $sleep -}}
{{- else -}}
{{- $given | int -}}
{{- end -}}
{{- end -}}

{{- /* The configuration without what can be reloaded, of which a change replaces the pods; argument: root, part, config. */ -}}
{{- define "agentstatsd.configChecksum" -}}
{{- $known := index (.root.Files.Get "files/options.json" | fromJson) .part -}}
{{- $kept := dict -}}
{{- $reloads := and (eq .part "service") .root.Values.configReloader.enabled -}}
{{- range $group, $options := .config -}}
{{- range $key, $value := $options -}}
{{- $path := printf "%s.%s" $group $key -}}
{{- if not (and $reloads (index $known $path).reloadable) -}}
{{- $_ := set $kept $path $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept | sha256sum -}}
{{- end -}}

{{- define "agentstatsd.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "agentstatsd.fullname" .)) -}}
{{- end -}}

{{- /* Tokens that there are, as a list of {name, flag, secret, key, own}; argument: root. */ -}}
{{- define "agentstatsd.tokens" -}}
{{- $full := include "agentstatsd.fullname" . -}}
{{- $tokens := list -}}
{{- range $name, $value := dict "coderd" .Values.coderdToken "operator" .Values.operatorToken "push" .Values.pushToken -}}
{{- if or (eq $name "coderd") $value.enabled -}}
{{- $tokens = append $tokens (dict "name" $name "secret" ($value.existingSecret | default (printf "%s-%s-token" $full $name)) "key" $value.key "own" (not $value.existingSecret)) -}}
{{- end -}}
{{- end -}}
{{- toJson $tokens -}}
{{- end -}}

{{- /* Names by which the service is dialed; argument: root. */ -}}
{{- define "agentstatsd.dnsNames" -}}
{{- $full := include "agentstatsd.fullname" . -}}
{{- $ns := .Release.Namespace -}}
{{- concat (list $full (printf "%s.%s" $full $ns) (printf "%s.%s.svc" $full $ns) (printf "%s.%s.svc.cluster.local" $full $ns)) .Values.tls.certManager.dnsNames | uniq | toJson -}}
{{- end -}}

{{- define "agentstatsd.spread" -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "agentstatsd.selector" $ | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}

{{- /* Where pods go; argument: root, part, values, several. */ -}}
{{- define "agentstatsd.placement" -}}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not (kindIs "invalid" .values.topologySpreadConstraints) }}
{{- with .values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- else if .several }}
topologySpreadConstraints: {{- include "agentstatsd.spread" . | trim | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "agentstatsd.probes" -}}
{{- range $i, $kind := list "startupProbe" "livenessProbe" "readinessProbe" }}
{{- if $i }}
{{ end }}
{{- $kind }}:
  httpGet:
    path: {{ eq $kind "readinessProbe" | ternary "/-/ready" "/-/healthy" }}
    port: probes
  {{- toYaml (get $.Values $kind) | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What Prometheus's pods are told by annotations; argument: port, tls. */ -}}
{{- define "agentstatsd.scrapeAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "2112"
prometheus.io/path: /metrics
prometheus.io/scheme: {{ .tls | ternary "https" "http" }}
{{- end -}}

{{- /* Labels by which prometheus-operator selects. */ -}}
{{- define "agentstatsd.operatorLabels" -}}
{{- with .Values.metrics.release }}
release: {{ . }}
{{- end }}
{{- with .Values.metrics.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "agentstatsd.metricsNamespace" -}}
{{- .Values.metrics.namespace | default .Release.Namespace -}}
{{- end -}}

{{- /* Parts that run, as a list. */ -}}
{{- define "agentstatsd.parts" -}}
{{- $parts := list -}}
{{- if ne .Values.shape "none" }}{{ $parts = append $parts "service" }}{{ end -}}
{{- if .Values.bridge.enabled }}{{ $parts = append $parts "bridge" }}{{ end -}}
{{- toJson $parts -}}
{{- end -}}
