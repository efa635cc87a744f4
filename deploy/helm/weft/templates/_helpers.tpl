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
{{- $honoured := list "CITADEL_SELF_SIGNED_CA_CERT_TTL" "DEFAULT_WORKLOAD_CERT_TTL" "MAX_WORKLOAD_CERT_TTL" "PILOT_DEBOUNCE_AFTER" "PILOT_DEBOUNCE_MAX" "PILOT_ENABLE_CROSS_CLUSTER_WORKLOAD_ENTRY" "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER" "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION" "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL" "PILOT_PUSH_THROTTLE" "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD" "WEFT_LOG_FORMAT" "WEFT_OTLP_METRICS" "WEFT_OTLP_METRICS_CA" "WEFT_OTLP_METRICS_CERT" "WEFT_OTLP_METRICS_INTERVAL" "WEFT_OTLP_METRICS_KEY" "WEFT_SECURITY_LOG" "WEFT_SECURITY_LOG_FORMAT" "WEFT_SECURITY_LOG_RATE" -}}
{{- $noted := list "EXTERNAL_ISTIOD" -}}
{{- range $name, $value := $all.values.pilot.env -}}
{{- if eq $name "WEFT_LOG" -}}
{{- fail "values.pilot.env.WEFT_LOG has no effect beside values.pilot.logLevel: say there what is logged" -}}
{{- end -}}
{{- if eq $name "WEFT_REBALANCE_RATE" -}}
{{- fail "values.pilot.env.WEFT_REBALANCE_RATE has no effect beside values.pilot.rebalanceRate: say it there" -}}
{{- end -}}
{{- if not (or (has $name $honoured) (has $name $noted)) -}}
{{- fail (printf "values.pilot.env.%s does nothing in Weft's control plane: take it away; it reads %s" $name ($honoured | join ", ")) -}}
{{- end -}}
{{- if and (eq $name "EXTERNAL_ISTIOD") (ne (toString $value) "false") -}}
{{- fail "values.pilot.env.EXTERNAL_ISTIOD: only false is known: the control plane that is installed serves the cluster that it runs in; one outside of it is started there, with weft control --kubeconfig" -}}
{{- end -}}
{{- end -}}
{{- /* What would have no effect is refused: whoever has written it relies on it. */ -}}
{{- $given := (($.Values.components).pilot).k8s | default dict -}}
{{- if and $given.replicaCount $all.components.pilot.k8s.hpaSpec -}}
{{- if ne (int $given.replicaCount) (int ($all.components.pilot.k8s.hpaSpec.minReplicas | default 1)) -}}
{{- fail "components.pilot.k8s.replicaCount has no effect beside hpaSpec (of the values, or of the profile): set hpaSpec.minReplicas" -}}
{{- end -}}
{{- end -}}
{{- range $which := list "ingress" "egress" -}}
{{- $one := get $all.gateways $which -}}
{{- $given := get ($.Values.gateways | default dict) $which | default dict -}}
{{- if and ($given.k8s).replicaCount $one.k8s.hpaSpec -}}
{{- if ne (int $given.k8s.replicaCount) (int ($one.k8s.hpaSpec.minReplicas | default 1)) -}}
{{- fail (printf "gateways.%s.k8s.replicaCount has no effect beside hpaSpec (of the values, or of the profile): set hpaSpec.minReplicas" $which) -}}
{{- end -}}
{{- end -}}
{{- if and (not $one.enabled) (or $given.k8s $given.service) -}}
{{- fail (printf "gateways.%s: what is said of a gateway that is not enabled has no effect: set gateways.%s.enabled: true, or take it away" $which $which) -}}
{{- end -}}
{{- end -}}
{{- $signer := $all.values.pilot.certificateSigner -}}
{{- if ne (not $signer.name) (not $signer.roots) -}}
{{- fail "values.pilot.certificateSigner: name and roots go together: a signer, and the ConfigMap that has the roots of its certificates" -}}
{{- end -}}
{{- if ne $all.revision "default" -}}
{{- if or (not (has (toString $all.values.pilot.traceSampling) (list "1" "1.0"))) (omit $all.values.meshConfig "defaultConfig") -}}
{{- fail (printf "values.meshConfig and values.pilot.traceSampling have no effect in revision %q: all revisions read the ConfigMap istio, which the default one installs; say it there (meshConfig.defaultConfig may be said here)" $all.revision) -}}
{{- end -}}
{{- end -}}
{{- if and (not $all.serviceMonitors.enabled) ($.Values.serviceMonitors).labels -}}
{{- fail "serviceMonitors.labels has no effect: set serviceMonitors.enabled: true, or take it away" -}}
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
