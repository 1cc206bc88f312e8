{{- /* What cannot be together ends with a sentence. The schema refuses most of it before. */ -}}
{{- define "agentstatsd.checks" -}}
{{- $v := .Values -}}
{{- if not (has $v.shape (list "single" "replicated" "none")) -}}
{{- fail (printf "shape: want single, replicated or none, got %q" $v.shape) -}}
{{- end -}}
{{- if eq $v.shape "single" -}}
{{- if and (not (kindIs "invalid" $v.replicas)) (ne (int $v.replicas) 1) -}}
{{- fail (printf "replicas: %d with shape single, whose SQLite takes one process. For several give shape: replicated and database.existingSecret" (int $v.replicas)) -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- fail "autoscaling.enabled: shape single has one pod. For several give shape: replicated and database.existingSecret" -}}
{{- end -}}
{{- if or $v.database.existingSecret $v.pubsub.existingSecret -}}
{{- fail "database.existingSecret, pubsub.existingSecret: shape single is over SQLite. For PostgreSQL give shape: replicated" -}}
{{- end -}}
{{- end -}}
{{- if eq $v.shape "replicated" -}}
{{- if not $v.database.existingSecret -}}
{{- fail "database.existingSecret: shape replicated needs a PostgreSQL: name a Secret whose key url has its URL" -}}
{{- end -}}
{{- with $v.persistence -}}
{{- if or .size .storageClass .accessModes .annotations .existingClaim -}}
{{- fail "persistence: shape replicated has no volume, as all is in PostgreSQL. For SQLite on a volume give shape: single" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq $v.shape "none" -}}
{{- if not $v.bridge.enabled -}}
{{- fail "shape: none without bridge.enabled is nothing at all" -}}
{{- end -}}
{{- if not (and $v.bridge.serviceAddress.address $v.bridge.serviceAddress.tokenSecret) -}}
{{- fail "bridge.serviceAddress: with shape none the bridge needs the address of a service and a Secret with coderd's token: address and tokenSecret" -}}
{{- end -}}
{{- else -}}
{{- if $v.bridge.serviceAddress.address -}}
{{- fail "bridge.serviceAddress.address: the bridge of this release serves the service of this release. For another one give shape: none" -}}
{{- end -}}
{{- $ways := list -}}
{{- if $v.tls.existingSecret }}{{ $ways = append $ways "tls.existingSecret" }}{{ end -}}
{{- if $v.tls.certManager.enabled }}{{ $ways = append $ways "tls.certManager.enabled" }}{{ end -}}
{{- if $v.tls.allowPlaintext }}{{ $ways = append $ways "tls.allowPlaintext" }}{{ end -}}
{{- if not $ways -}}
{{- fail "tls: the gRPC listener needs a certificate: give tls.existingSecret or tls.certManager.enabled, or on purpose tls.allowPlaintext" -}}
{{- end -}}
{{- if gt (len $ways) 1 -}}
{{- fail (printf "tls: want one of tls.existingSecret, tls.certManager.enabled and tls.allowPlaintext, got %s" (join ", " $ways)) -}}
{{- end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: cert-manager needs to know who issues the certificate" -}}
{{- end -}}
{{- if ne (empty $v.tls.clientCA.existingSecret) (empty $v.tls.clientCA.san) -}}
{{- fail "tls.clientCA: existingSecret and san need each other" -}}
{{- end -}}
{{- if and $v.tls.clientCA.existingSecret $v.tls.allowPlaintext -}}
{{- fail "tls.clientCA: client certificates need TLS, and tls.allowPlaintext is set" -}}
{{- end -}}
{{- include "agentstatsd.checkConfig" (dict "root" . "part" "service" "config" $v.config "at" "config") -}}
{{- if and $v.configReloader.enabled $v.webConfig.existingSecret -}}
{{- fail "configReloader.enabled: the sidecar has no password and takes no certificate, so it does not go with webConfig.existingSecret" -}}
{{- end -}}
{{- end -}}
{{- if $v.bridge.enabled -}}
{{- if not (or $v.bridge.tls.existingSecret $v.bridge.tls.allowPlaintext) -}}
{{- fail "bridge.tls: agents' connections come in the clear from an ingress that ends TLS: say so by bridge.tls.allowPlaintext, or give bridge.tls.existingSecret" -}}
{{- end -}}
{{- if and $v.bridge.tls.existingSecret $v.bridge.tls.allowPlaintext -}}
{{- fail "bridge.tls: want one of existingSecret and allowPlaintext, got both" -}}
{{- end -}}
{{- include "agentstatsd.checkConfig" (dict "root" . "part" "bridge" "config" $v.bridge.config "at" "bridge.config") -}}
{{- $b := $v.bridge.config.bridge | default dict -}}
{{- if not (or $b.upstream $b.coder_url $b.coderd_metrics_url) -}}
{{- fail "bridge.config.bridge: the bridge has nothing to do: give upstream, coder_url or coderd_metrics_url" -}}
{{- end -}}
{{- if ne (empty $b.coder_url) (empty $v.bridge.apiToken.existingSecret) -}}
{{- fail "bridge.apiToken.existingSecret and bridge.config.bridge.coder_url need each other" -}}
{{- end -}}
{{- if and $v.bridge.ingress.enabled (not $v.bridge.ingress.host) -}}
{{- fail "bridge.ingress.host: want the host of Coder's access URL" -}}
{{- end -}}
{{- if and $v.bridge.httpRoute.enabled (not (and $v.bridge.httpRoute.parentRefs $v.bridge.httpRoute.hostnames)) -}}
{{- fail "bridge.httpRoute: want parentRefs and hostnames, those of coderd's HTTPRoute" -}}
{{- end -}}
{{- end -}}
{{- if not (has $v.metrics.monitor (list "" "ServiceMonitor" "PodMonitor" "ScrapeConfig")) -}}
{{- fail (printf "metrics.monitor: want ServiceMonitor, PodMonitor, ScrapeConfig or nothing, got %q" $v.metrics.monitor) -}}
{{- end -}}
{{- range concat $v.extraEnv $v.bridge.extraEnv -}}
{{- if has .name (list "AGENTSTATSD_DATABASE_URL" "AGENTSTATSD_PUBSUB_URL") -}}
{{- fail (printf "extraEnv: %s is the chart's: give database.existingSecret or pubsub.existingSecret" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Options that the chart sets itself are none of config; argument: root, part, config, at. */ -}}
{{- define "agentstatsd.checkConfig" -}}
{{- $known := index (.root.Files.Get "files/options.json" | fromJson) .part -}}
{{- $at := .at -}}
{{- range $group, $options := .config -}}
{{- range $key, $_ := $options -}}
{{- $path := printf "%s.%s" $group $key -}}
{{- if not (hasKey $known $path) -}}
{{- fail (printf "%s.%s: there is no such option: see docs/configuration.md" $at $path) -}}
{{- end -}}
{{- with (index $known $path).instead -}}
{{- fail (printf "%s.%s is set by the chart: %s" $at $path .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
