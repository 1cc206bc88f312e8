{{- /* The pod of the service; argument: root. */ -}}
{{- define "agentstatsd.pod" -}}
{{- $v := .Values -}}
{{- $arg := dict "root" . "part" "service" -}}
{{- $tokens := include "agentstatsd.tokens" . | fromJsonArray -}}
{{- $sqlite := eq $v.shape "single" -}}
metadata:
  labels: {{- include "agentstatsd.podLabels" $arg | nindent 4 }}
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A change of it replaces the pods.
    checksum/config: {{ include "agentstatsd.configChecksum" (dict "root" . "part" "service" "config" $v.config) }}
    {{- if $v.metrics.podAnnotations }}
    {{- include "agentstatsd.scrapeAnnotations" $v.webConfig | nindent 4 }}
    {{- end }}
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "agentstatsd.serviceAccount" . }}
  automountServiceAccountToken: false
  # Variables like AGENTSTATSD_PORT, which Kubernetes would make of the Service,
  # are not the options that they look like.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "agentstatsd.gracePeriod" $arg }}
  {{- with $v.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext: {{- toYaml $v.podSecurityContext | nindent 4 }}
  {{- with include "agentstatsd.placement" (dict "root" . "part" "service" "values" $v "several" (not $sqlite)) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $v.initContainers }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: agentstatsd
      image: {{ include "agentstatsd.image" . | quote }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [/usr/bin/agentstatsd]
      args:
        - serve
        - --config=/etc/agentstatsd/config/config.yaml
        - --data-dir=/var/lib/agentstatsd/data
        - --prometheus-address=:2112
        - --grpc-address=:2113
        # Without TLS and passwords, which probes do not have.
        - --probe-address=:2116
        {{- if $v.tls.allowPlaintext }}
        - --grpc-allow-plaintext
        {{- else }}
        - --tls-cert-file=/etc/agentstatsd/tls/tls.crt
        - --tls-key-file=/etc/agentstatsd/tls/tls.key
        {{- end }}
        {{- if $v.tls.clientCA.existingSecret }}
        - --tls-client-ca-file=/etc/agentstatsd/client-ca/{{ $v.tls.clientCA.key }}
        - --coderd-client-san={{ $v.tls.clientCA.san }}
        {{- end }}
        {{- range $tokens }}
        - --{{ .name }}-token-file=/etc/agentstatsd/{{ .name }}/{{ .key }}
        {{- end }}
        {{- if $v.webConfig.existingSecret }}
        - --web-config-file=/etc/agentstatsd/web/{{ $v.webConfig.key }}
        {{- end }}
        {{- if $v.configReloader.enabled }}
        - --web-enable-lifecycle
        {{- end }}
        {{- with $v.extraArgs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if or $v.database.existingSecret $v.pubsub.existingSecret $v.extraEnv }}
      env:
        {{- with $v.database }}
        {{- if .existingSecret }}
        - name: AGENTSTATSD_DATABASE_URL
          valueFrom:
            secretKeyRef:
              name: {{ .existingSecret }}
              key: {{ .key }}
        {{- end }}
        {{- end }}
        {{- with $v.pubsub }}
        {{- if .existingSecret }}
        - name: AGENTSTATSD_PUBSUB_URL
          valueFrom:
            secretKeyRef:
              name: {{ .existingSecret }}
              key: {{ .key }}
        {{- end }}
        {{- end }}
        {{- with $v.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with $v.extraEnvFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http-metrics
          containerPort: 2112
        - name: grpc
          containerPort: 2113
        - name: probes
          containerPort: 2116
      {{- include "agentstatsd.probes" . | nindent 6 }}
      {{- if and (not $sqlite) (gt (int $v.preStopSleepSeconds) 0) }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $v.preStopSleepSeconds }}
      {{- end }}
      resources: {{- toYaml $v.resources | nindent 8 }}
      securityContext: {{- toYaml $v.securityContext | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/agentstatsd/config
          readOnly: true
        - name: data
          mountPath: /var/lib/agentstatsd
        {{- range $tokens }}
        - name: {{ .name }}-token
          mountPath: /etc/agentstatsd/{{ .name }}
          readOnly: true
        {{- end }}
        {{- if not $v.tls.allowPlaintext }}
        - name: tls
          mountPath: /etc/agentstatsd/tls
          readOnly: true
        {{- end }}
        {{- if $v.tls.clientCA.existingSecret }}
        - name: client-ca
          mountPath: /etc/agentstatsd/client-ca
          readOnly: true
        {{- end }}
        {{- if $v.webConfig.existingSecret }}
        - name: web
          mountPath: /etc/agentstatsd/web
          readOnly: true
        {{- end }}
        {{- if $sqlite }}
        # SQLite's temporary files.
        - name: tmp
          mountPath: /tmp
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- if $v.configReloader.enabled }}
    - name: config-reloader
      image: {{ $v.configReloader.image | quote }}
      args:
        - --watched-dir=/etc/agentstatsd/config
        - --reload-url=http://127.0.0.1:2112/-/reload
        - --listen-address=127.0.0.1:2117
      resources: {{- toYaml $v.configReloader.resources | nindent 8 }}
      securityContext: {{- toYaml $v.securityContext | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/agentstatsd/config
          readOnly: true
    {{- end }}
    {{- with $v.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "agentstatsd.fullname" . }}
        defaultMode: 0440
    {{- range $tokens }}
    - name: {{ .name }}-token
      secret:
        secretName: {{ .secret }}
        defaultMode: 0440
    {{- end }}
    {{- if not $v.tls.allowPlaintext }}
    - name: tls
      secret:
        secretName: {{ include "agentstatsd.tlsSecret" . }}
        defaultMode: 0440
    {{- end }}
    {{- if $v.tls.clientCA.existingSecret }}
    - name: client-ca
      secret:
        secretName: {{ $v.tls.clientCA.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if $v.webConfig.existingSecret }}
    - name: web
      secret:
        secretName: {{ $v.webConfig.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if not $sqlite }}
    # A lock file only: all data is in PostgreSQL.
    - name: data
      emptyDir:
        sizeLimit: 64Mi
    {{- else }}
    {{- with $v.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ . }}
    {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    {{- end }}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
