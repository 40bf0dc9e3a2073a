{{/* The labels of every object. Helm itself adds app.kubernetes.io/managed-by. */}}
{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
networking.knative.dev/ingress-provider: sluice
{{- end -}}

{{/* What Services, the Deployment and the budget find the Pods by. It cannot be changed in a Deployment. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
{{- end -}}

{{/* keep or fused, where fused can be. */}}
{{- define "sluice.activator" -}}
{{- if eq .Values.activator "fused" -}}
{{- if ne .Release.Namespace .Values.knativeNamespace -}}
{{- fail (printf "activator: fused: the release has to be in the namespace of activator-service: --namespace %s" .Values.knativeNamespace) -}}
{{- end -}}
{{- if hasKey .Values.config "listeners" -}}
{{- fail "activator: fused: config.listeners leaves out the ports 8012, 8013 and 8112, which activator-service leads to" -}}
{{- end -}}
{{- end -}}
{{- .Values.activator -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* After the drain: 6 s for streams that are told to end, 1 s for the last answers, and the rest in hand. */}}
{{- define "sluice.gracePeriod" -}}
{{- $drain := add .Values.drain.delay .Values.drain.timeout -}}
{{- $grace := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}
{{- add $drain 15 -}}
{{- else if lt (int64 $grace) (add $drain 10) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d does not hold the drain: drain.delay + drain.timeout + 10 are %d" (int64 $grace) (add $drain 10)) -}}
{{- else -}}
{{- int64 $grace -}}
{{- end -}}
{{- end -}}
