{{- /* The values that hold: defaults, the profile's over them, the user's over both. */ -}}
{{- define "weft.values" -}}
{{- $profile := .Values.profile | default "default" -}}
{{- $known := list "default" "demo" "minimal" "production" -}}
{{- if not (has $profile $known) -}}
{{- fail (printf "profile %q is not known; there are %s" $profile ($known | join ", ")) -}}
{{- end -}}
{{- $defaults := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- $own := .Files.Get (printf "files/profiles/%s.yaml" $profile) | fromYaml -}}
{{- $all := mergeOverwrite $defaults $own (deepCopy .Values) -}}
{{- if and $all.namespace (ne $all.namespace .Release.Namespace) -}}
{{- fail (printf "namespace %q is not the one that is installed into, which is %q: give that one, or take the value away" $all.namespace .Release.Namespace) -}}
{{- end -}}
{{- $honoured := list "DEFAULT_WORKLOAD_CERT_TTL" "MAX_WORKLOAD_CERT_TTL" "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL" "PILOT_PUSH_THROTTLE" "WEFT_LOG" "WEFT_SECURITY_LOG" "WEFT_SECURITY_LOG_FORMAT" "WEFT_SECURITY_LOG_RATE" -}}
{{- $noted := list "EXTERNAL_ISTIOD" "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION" -}}
{{- range $name, $value := $all.values.pilot.env -}}
{{- if not (or (has $name $honoured) (has $name $noted)) -}}
{{- fail (printf "values.pilot.env.%s does nothing in Weft's control plane: take it away; it reads %s" $name ($honoured | join ", ")) -}}
{{- end -}}
{{- if and (eq $name "EXTERNAL_ISTIOD") (ne (toString $value) "false") -}}
{{- fail "values.pilot.env.EXTERNAL_ISTIOD: only false is known: the control plane serves the cluster that it runs in" -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- define "weft.image" -}}
{{- $global := .values.values.global -}}
{{ $global.hub }}/{{ .name }}:{{ $global.tag | default .chart.AppVersion }}
{{- end -}}

{{- /* What istiod is called: with its revision, unless that is the default one. */ -}}
{{- define "weft.istiod" -}}
istiod{{ if ne .revision "default" }}-{{ .revision }}{{ end }}
{{- end -}}

{{- define "weft.labels" -}}
app.kubernetes.io/part-of: weft
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
