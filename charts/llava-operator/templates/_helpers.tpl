{{/* Labels of every object of the release. */}}
{{- define "llava.commonLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: llava-operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Annotations of every object of the release; empty for none. */}}
{{- define "llava.annotations" -}}
{{- with .Values.commonAnnotations }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* The `metadata` of an object: (dict "root" $ "name" NAME "component" llava-operator|llava-router). */}}
{{- define "llava.metadata" -}}
name: {{ .name }}
{{- if not .clusterScoped }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
labels:
  app.kubernetes.io/name: {{ .component }}
  {{- include "llava.commonLabels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a component's pods are selected by: (dict "root" $ "component" NAME). */}}
{{- define "llava.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* The reference of an image: (dict "root" $ "image" .Values.router.image). */}}
{{- define "llava.image" -}}
{{- $name := .image.repository }}
{{- with .root.Values.image.registry }}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name }}
{{- end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (.image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* A name of a cluster-scoped object, which two releases must not share. */}}
{{- define "llava.clusterName" -}}
{{- printf "%s.%s" .name .root.Release.Namespace }}
{{- end }}

{{/* What Pod Security "restricted" asks of a pod. */}}
{{- define "llava.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* What Pod Security "restricted" asks of a container, and a read-only root. */}}
{{- define "llava.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Who a process is, from the downward API. */}}
{{- define "llava.podEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
{{- end }}

{{/* Probes on the admin port, which every process of ours has. */}}
{{- define "llava.probes" -}}
startupProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /livez
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* Where a component's pods may run: (dict "root" $ "component" NAME "values" .Values.router). */}}
{{- define "llava.scheduling" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "llava.selector" $ | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
  {{- end }}
{{- end }}

{{/* The `metadata` of a component's pods: (dict "root" $ "component" NAME "values" .Values.router). */}}
{{- define "llava.podMetadata" -}}
labels:
  {{- include "llava.selector" . | nindent 2 }}
  app.kubernetes.io/part-of: llava-operator
  {{- with merge (dict) .values.podLabels .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) .values.podAnnotations .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Secrets to pull images with. */}}
{{- define "llava.imagePullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A Role and its binding, in the scope that the release serves:
     (dict "root" $ "name" NAME "component" NAME "account" ACCOUNT "rules" YAML). */}}
{{- define "llava.scopedRole" -}}
{{- $cluster := eq .root.Values.scope "Cluster" }}
{{- $name := ternary (include "llava.clusterName" .) .name $cluster }}
{{- $metadata := include "llava.metadata" (dict "root" .root "name" $name "component" .component "clusterScoped" $cluster) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "ClusterRole" "Role" $cluster }}
metadata:
  {{- $metadata | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ ternary "ClusterRoleBinding" "RoleBinding" $cluster }}
metadata:
  {{- $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ ternary "ClusterRole" "Role" $cluster }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* A Role in the release's namespace, and its binding, whatever the scope. */}}
{{- define "llava.localRole" -}}
{{- $metadata := include "llava.metadata" (dict "root" .root "name" .name "component" .component) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $metadata | nindent 2 }}
rules:
  {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* Who may reach the admin port. Kubelet's probes need no rule. */}}
{{- define "llava.adminIngress" -}}
- ports:
    - port: admin
  {{- with .Values.networkPolicy.monitoring }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The way to the API server, which no selector can name. It is found by address: no DNS is needed. */}}
{{- define "llava.apiServerEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - port: {{ . }}
    {{- end }}
{{- end }}

{{/* Where clients in the cluster find the router. */}}
{{- define "llava.routerUrl" -}}
{{- $port := int .Values.router.service.port }}
{{- printf "http://llava-router.%s.svc%s" .Release.Namespace (ternary "" (printf ":%d" $port) (eq $port 80)) }}
{{- end }}

{{/* The way to the cluster's DNS. */}}
{{- define "llava.dnsEgress" -}}
- to:
    - namespaceSelector: {}
      podSelector:
        matchLabels:
          k8s-app: kube-dns
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* The rules of the NetworkPolicy that the operator gives to each LlavaDeployment's workers, wherever it lives. */}}
{{- define "llava.workerPolicy" -}}
policyTypes: [Ingress, Egress]
ingress:
  - from:
      - namespaceSelector:
          matchLabels:
            kubernetes.io/metadata.name: {{ .Release.Namespace }}
        podSelector:
          matchLabels:
            {{- include "llava.selector" (dict "root" . "component" "llava-router") | nindent 12 }}
    ports:
      - port: http
  {{- include "llava.adminIngress" . | nindent 2 }}
egress:
  {{- include "llava.dnsEgress" . | nindent 2 }}
  {{- /* Also where models are fetched from, by https. */}}
  {{- include "llava.apiServerEgress" . | nindent 2 }}
{{- end }}
