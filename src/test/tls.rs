//! TLS contexts in words.

use serde_json::{Map, Value, json};

/// The names of the secrets in a list of SDS configurations.
fn secrets(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|s| s["name"].as_str()).collect()
}

/// How a filter chain ends TLS: `none`, `simple`, `optional-mutual`, `mutual`, `istio-mutual`; `passthrough` where TLS goes on as
/// it is.
pub(super) fn downstream(socket: &Value, secure: bool) -> Value {
    if socket.is_null() {
        return json!({"mode": if secure { "passthrough" } else { "none" }});
    }
    let context = &socket["typed_config"];
    let common = &context["common_tls_context"];
    let required = context["require_client_certificate"] == true;
    let named = secrets(&common["tls_certificate_sds_secret_configs"]);
    let validated =
        !common["combined_validation_context"].is_null() || !common["validation_context"].is_null();
    let mode = match (required, validated) {
        (true, _) if named == ["default"] => "istio-mutual",
        (true, _) => "mutual",
        (false, true) => "optional-mutual",
        (false, false) => "simple",
    };
    let mut found = json!({"mode": mode});
    if mode != "istio-mutual" {
        let files = common["tls_certificates"].as_array().into_iter().flatten();
        let files = files.filter_map(|c| c["certificate_chain"]["filename"].as_str());
        found["certificates"] = named.into_iter().chain(files).collect();
    }
    let parameters = &common["tls_params"];
    for (key, field) in
        [("minVersion", "tls_minimum_protocol_version"), ("maxVersion", "tls_maximum_protocol_version")]
    {
        if let Some(version) = parameters[field].as_str() {
            found[key] = version.into();
        }
    }
    found
}

/// What stands in front of TLS, and TLS itself.
fn unwrapped(socket: &Value) -> (Option<&str>, &Value) {
    match socket["name"].as_str() {
        Some("envoy.transport_sockets.upstream_proxy_protocol") => {
            let config = &socket["typed_config"];
            (Some(config["config"]["version"].as_str().unwrap_or("V1")), &config["transport_socket"])
        }
        _ => (None, socket),
    }
}

/// How connections to endpoints are secured: `none`, `simple`, `mutual` or `istio-mutual`.
pub(super) fn mode(socket: &Value) -> &'static str {
    let (_, socket) = unwrapped(socket);
    let context = &socket["typed_config"]["common_tls_context"];
    if socket["name"] != "envoy.transport_sockets.tls" {
        "none"
    } else if secrets(&context["tls_certificate_sds_secret_configs"]) == ["default"] {
        "istio-mutual"
    } else if context["tls_certificate_sds_secret_configs"].is_null() && context["tls_certificates"].is_null()
    {
        "simple"
    } else {
        "mutual"
    }
}

/// The same with what is asked for and demanded; `auto` where each endpoint says by its metadata what it takes.
pub(super) fn upstream(cluster: &Value) -> Value {
    let first = &cluster["transport_socket_matches"][0]["transport_socket"];
    let auto = !first.is_null();
    let socket = if auto { first } else { &cluster["transport_socket"] };
    let (header, inner) = unwrapped(socket);
    let mut found = json!({"mode": if auto { "auto" } else { mode(socket) }});
    if let Some(version) = header {
        found["proxyProtocol"] = version.into();
    }
    if let (Value::Object(fields), true) = (&mut found, mode(socket) != "none") {
        details(cluster, inner, fields);
    }
    found
}

fn details(cluster: &Value, socket: &Value, found: &mut Map<String, Value>) {
    let context = &socket["typed_config"];
    let common = &context["common_tls_context"];
    if let Some(sni) = context["sni"].as_str().filter(|sni| !sni.is_empty()) {
        found.insert("sni".into(), sni.into());
    }
    let options =
        cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
            ["upstream_http_protocol_options"]
            .clone();
    if options["auto_sni"] == true {
        found.insert("sni".into(), "the request's host".into());
    }
    if options["auto_san_validation"] == true {
        found.insert("subjectAltNames".into(), json!(["the request's host"]));
    }
    found.insert("alpn".into(), common["alpn_protocols"].as_array().cloned().unwrap_or_default().into());
    let combined = &common["combined_validation_context"];
    let rules = if combined.is_null() {
        &common["validation_context"]
    } else {
        &combined["default_validation_context"]
    };
    let list = |key: &str| rules[key].as_array().into_iter().flatten();
    let typed = list("match_typed_subject_alt_names").map(|name| &name["matcher"]);
    // Control planes write the older field as well, for names of any type.
    let matchers = typed.chain(list("match_subject_alt_names"));
    let names: Vec<&Value> = matchers.filter_map(|matcher| matcher.as_object()?.values().next()).collect();
    if !names.is_empty() {
        found.insert("subjectAltNames".into(), json!(names));
    }
    let roots = match (
        combined["validation_context_sds_secret_config"]["name"].as_str(),
        rules["trusted_ca"]["filename"].as_str(),
    ) {
        (Some(secret), _) => Some(secret),
        (None, file) => file,
    };
    found.insert("roots".into(), roots.map_or_else(|| "none: nothing is verified".into(), Value::from));
    let own = secrets(&common["tls_certificate_sds_secret_configs"]);
    let file = common["tls_certificates"][0]["certificate_chain"]["filename"].as_str();
    if let Some(own) = own.first().copied().or(file) {
        found.insert("certificate".into(), own.into());
    }
}
