//! The containers that are put into a pod, and the volumes that the proxy reads from.

use serde_json::{Map, Value, json};

use super::annotations::{Asked, Template};
use super::proxy_config::{Interception, ProxyConfig};
use super::settings::Settings;

/// The proxy's container.
pub(super) const PROXY: &str = "istio-proxy";
/// The container that installs the redirection.
pub(super) const INIT: &str = "istio-init";

/// Where the proxy is ready.
const READY: (&str, u16) = ("/healthz/ready", 15021);
/// The proxy's program in its image.
const PROGRAM: &str = "/usr/local/bin/weft-proxy";

/// What the containers are made from.
pub(super) struct Parts<'a> {
    pub(super) settings: &'a Settings,
    pub(super) asked: &'a Asked,
    pub(super) config: &'a ProxyConfig,
    pub(super) image: String,
    pub(super) log_level: String,
    pub(super) native: bool,
    pub(super) mode: Interception,
    /// 0: none.
    pub(super) status_port: u16,
    /// Environment variables that come from the pod.
    pub(super) env: Vec<(&'static str, String)>,
}

impl Parts<'_> {
    fn gateway(&self) -> bool {
        self.asked.template == Template::Gateway
    }

    /// The proxy's container.
    pub(super) fn proxy(&self) -> Value {
        let mut container = json!({
            "name": PROXY,
            "image": self.image,
            "args": self.arguments(),
            "env": self.environment(),
            "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
            "resources": self.resources(),
            "securityContext": self.security(),
            "volumeMounts": self.mounts(),
        });
        if !self.settings.image_pull_policy.is_empty() {
            container["imagePullPolicy"] = self.settings.image_pull_policy.as_str().into();
        }
        let own = &self.settings.proxy;
        let ready = json!({"httpGet": {"path": READY.0, "port": READY.1}});
        if self.status_port != 0 {
            let mut readiness = ready.clone();
            readiness["initialDelaySeconds"] =
                self.asked.initial_delay.unwrap_or(own.readiness_initial_delay_seconds).into();
            readiness["periodSeconds"] = self.asked.period.unwrap_or(own.readiness_period_seconds).into();
            readiness["failureThreshold"] =
                self.asked.failure_threshold.unwrap_or(own.readiness_failure_threshold).into();
            readiness["timeoutSeconds"] = 3.into();
            container["readinessProbe"] = self.config.readiness.clone().unwrap_or(readiness);
            // A native sidecar holds back what starts after it until this passes.
            let mut startup = ready;
            startup["periodSeconds"] = 1.into();
            startup["timeoutSeconds"] = 3.into();
            startup["failureThreshold"] = own.startup_failure_threshold.into();
            container["startupProbe"] = startup;
        }
        if self.native {
            container["restartPolicy"] = "Always".into();
            // The application is still at work: what comes in drains before kubelet tells us to end.
            let port = if self.status_port == 0 { 15020 } else { self.status_port };
            container["lifecycle"] = json!({"preStop": {"exec": {
                "command": [PROGRAM, "request", "--port", port.to_string(), "POST", "/drain"],
            }}});
        } else if self.config.hold && !self.gateway() {
            container["lifecycle"] = json!({"postStart": {"exec": {"command": [PROGRAM, "wait"]}}});
        }
        container
    }

    /// The container that installs the redirection, if there is one.
    pub(super) fn init(&self) -> Option<Value> {
        if self.gateway() || self.mode == Interception::None {
            return None;
        }
        let dns = self.config.variable("ISTIO_META_DNS_CAPTURE") == Some("true");
        let arguments = self.asked.traffic.arguments(self.mode, self.status_port, dns, &self.settings.proxy);
        let mut container = json!({
            "name": INIT,
            "image": self.image,
            "args": arguments,
            "resources": self.settings.proxy_init.resources,
            // The one container that may change the pod's network; it ends before the application starts.
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "runAsUser": 0,
            },
        });
        if !self.settings.image_pull_policy.is_empty() {
            container["imagePullPolicy"] = self.settings.image_pull_policy.as_str().into();
        }
        Some(container)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = Vec::new();
        let mut push = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        if self.gateway() {
            push("--role", "gateway".to_owned());
        }
        push("--xds-address", self.config.discovery_address.clone());
        push("--admin-address", format!("127.0.0.1:{}", self.config.admin_port));
        push("--probe-address", self.settings.probe_address.clone());
        if self.status_port != 0 && self.status_port != 15020 {
            push("--agent-port", self.status_port.to_string());
        }
        if let Some(workers) = self.config.concurrency {
            push("--concurrency", workers.to_string());
        }
        if let Some(time) = &self.config.drain {
            push("--listener-drain-time", time.clone());
        }
        push("--state-dir", "/var/lib/istio/data".to_owned());
        arguments
    }

    /// Later ones of the same name count: the pod's `proxyMetadata` before everything else.
    fn environment(&self) -> Vec<Value> {
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        let mut env: Vec<Value> = [
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("INSTANCE_IP", "status.podIP"),
            ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            ("HOST_IP", "status.hostIP"),
            ("ISTIO_META_NODE_NAME", "spec.nodeName"),
        ]
        .into_iter()
        .map(|(name, path)| json!({"name": name, "valueFrom": field(path)}))
        .collect();
        let mut set = |name: &str, value: &str| {
            env.retain(|one| one["name"] != name);
            env.push(json!({"name": name, "value": value}));
        };
        let settings = self.settings;
        set("WEFT_LOG", &self.log_level);
        set("TRUST_DOMAIN", &settings.trust_domain);
        set("PROXY_CONFIG", &Value::Object(self.config.whole.clone()).to_string());
        set("ISTIO_META_CLUSTER_ID", &settings.cluster_name);
        for (name, value) in
            [("ISTIO_META_MESH_ID", &settings.mesh_id), ("ISTIO_META_NETWORK", &settings.network)]
        {
            if !value.is_empty() {
                set(name, value);
            }
        }
        if settings.mesh_id.is_empty() {
            set("ISTIO_META_MESH_ID", &settings.trust_domain);
        }
        let mode = if self.gateway() { Interception::None } else { self.mode };
        set("ISTIO_META_INTERCEPTION_MODE", mode.as_str());
        for (name, value) in &self.env {
            set(name, value);
        }
        for (name, value) in &settings.env {
            set(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned).as_str());
        }
        for (name, value) in &self.config.metadata {
            set(name, value);
        }
        env
    }

    fn resources(&self) -> Value {
        let asked = self.asked;
        let said = [
            ("requests", "cpu", &asked.cpu),
            ("requests", "memory", &asked.memory),
            ("limits", "cpu", &asked.cpu_limit),
            ("limits", "memory", &asked.memory_limit),
        ];
        if said.iter().all(|(_, _, value)| value.is_none()) {
            return self.settings.proxy.resources.clone();
        }
        // A pod that says something says all of it, as with Istio: a limit of the installation could be below its request.
        let mut resources = Map::new();
        for (part, what, value) in said {
            if let Some(value) = value {
                let part = resources.entry(part).or_insert_with(|| json!({}));
                part[what] = value.as_str().into();
            }
        }
        resources.into()
    }

    fn security(&self) -> Value {
        // Sockets that keep the client's address are the kernel's to give, to root alone.
        let transparent = self.mode == Interception::Tproxy && !self.gateway();
        let mut context = json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 1337,
            "runAsNonRoot": !transparent,
            "runAsUser": if transparent { 0 } else { 1337 },
        });
        if transparent {
            context["capabilities"]["add"] = json!(["NET_ADMIN"]);
        }
        context
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |name: &str, path: &str, read_only: bool| {
            let mut mount = json!({"name": name, "mountPath": path});
            if read_only {
                mount["readOnly"] = true.into();
            }
            mount
        };
        let own = [
            mount("istiod-ca-cert", "/var/run/secrets/istio", true),
            mount("istio-token", "/var/run/secrets/tokens", true),
            mount("istio-podinfo", "/etc/istio/pod", true),
            mount("istio-data", "/var/lib/istio/data", false),
        ];
        own.into_iter().chain(self.asked.mounts.iter().cloned()).collect()
    }

    /// The volumes.
    pub(super) fn volumes(&self) -> Vec<Value> {
        let own = [
            json!({"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}}),
            json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token",
            }}]}}),
            json!({"name": "istio-podinfo", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
            ]}}),
            json!({"name": "istio-data", "emptyDir": {}}),
        ];
        own.into_iter().chain(self.asked.volumes.iter().cloned()).collect()
    }
}
