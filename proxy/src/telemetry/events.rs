//! What of requests and connections is an event (docs/security-events.md): denials, and handshakes that failed. Nothing of a
//! request is told but its name and its place: no header fields, no token, no query.

use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::StreamInfo;
use crate::codec::RequestHead;
use crate::io::ConnectionInfo;

/// Who denied it, by the words of its end, and by which policy; none if nobody did.
fn denial(details: &str) -> Option<(&'static str, Option<&str>)> {
    if let Some(rest) = details.strip_prefix("rbac_access_denied") {
        let policy = rest.strip_prefix("_matched_policy[").and_then(|p| p.strip_suffix(']'));
        let policy = policy.filter(|policy| *policy != "none");
        let by = match policy {
            Some(list) if list.starts_with("deny-list[") => "deny-list",
            // So the control plane calls it; it stands behind the policy's namespace.
            Some(policy) if policy.contains("]-policy[weft-quarantine-") => "quarantine",
            _ => "rbac",
        };
        return Some((by, policy));
    }
    if details.starts_with("jwt_authn_access_denied") {
        return Some(("jwt", None));
    }
    matches!(details, "ext_authz_denied" | "ext_authz_error").then_some(("ext-authz", None))
}

/// Tells of a request that has ended, if it was denied.
pub fn request(info: &StreamInfo, connection: &ConnectionInfo, head: Option<&RequestHead>) {
    let Some(details) = info.details.as_deref() else { return };
    // Nearly all requests end here.
    let Some((by, policy)) = denial(details) else { return };
    emit(Kind::Denied, || {
        let path = String::from_utf8_lossy(&info.path);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let method = info.method.as_ref().map_or("", http::Method::as_str);
        let authority = String::from_utf8_lossy(&info.authority).into_owned();
        let event = denied(by, policy, details, format!("{method} {path} was denied"), connection)
            .with("method", method)
            .with("path", path)
            .with("authority", authority)
            .with_some("status", info.status.map(|s| s.as_u16()))
            .with_some("route", info.route.as_deref())
            .with_some("client_address", info.client.map(|c| c.to_string()))
            .with_some("request_id", info.trail.id.as_ref().and_then(|id| id.to_str().ok()));
        event.with_some("trace_id", info.trace_id(head))
    });
}

/// Tells of a connection that was denied, or ended by a new policy.
pub fn connection(info: &ConnectionInfo, details: &str) {
    let Some((by, policy)) = denial(details) else { return };
    emit(Kind::Denied, || denied(by, policy, details, "a connection was denied".to_owned(), info));
}

fn denied(
    by: &'static str,
    policy: Option<&str>,
    details: &str,
    words: String,
    info: &ConnectionInfo,
) -> Event {
    let event = Event::new(Kind::Denied, Outcome::Denied, Severity::Medium, by, words)
        .with_some("policy", policy)
        .with("details", details);
    ends(event, info)
}

/// Where a connection comes from and goes to.
fn ends(event: Event, info: &ConnectionInfo) -> Event {
    let tls = info.tls.as_ref();
    event
        .with("source_address", info.remote.to_string())
        .with_some("source_principal", info.peer_id().map(|id| &**id))
        .with("destination_address", info.local.to_string())
        .with_some("destination_principal", tls.and_then(|t| t.local_id.as_deref()))
        .with_some("sni", info.sni.as_deref())
        .with("listener", &*info.listener)
}

/// Tells of a downstream's handshake that failed.
pub fn downstream_handshake(info: &ConnectionInfo, reason: &'static str, words: &str) {
    emit(Kind::HandshakeFailed, || ends(handshake("tls-downstream", reason, words), info));
}

/// Tells of an upstream's.
pub fn upstream_handshake(cluster: &str, host: &str, reason: &'static str, words: &str) {
    emit(Kind::HandshakeFailed, || {
        handshake("tls-upstream", reason, words).with("cluster", cluster).with("destination_address", host)
    });
}

fn handshake(by: &'static str, reason: &'static str, words: &str) -> Event {
    // A certificate that names another, or none of our roots' is no mishap of a network.
    let grave = matches!(reason, "san_mismatch" | "unknown_issuer" | "revoked" | "hash_mismatch");
    let severity = if grave { Severity::High } else { Severity::Medium };
    Event::new(Kind::HandshakeFailed, Outcome::Failed, severity, by, words).with("reason", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_told_from_other_ends() {
        for (details, expected) in [
            (
                "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]",
                Some(("rbac", Some("ns[a]-policy[b]-rule[0]"))),
            ),
            ("rbac_access_denied_matched_policy[none]", Some(("rbac", None))),
            (
                "rbac_access_denied_matched_policy[deny-list[a/b]]",
                Some(("deny-list", Some("deny-list[a/b]"))),
            ),
            (
                "rbac_access_denied_matched_policy[ns[a]-policy[weft-quarantine-b]-rule[0]]",
                Some(("quarantine", Some("ns[a]-policy[weft-quarantine-b]-rule[0]"))),
            ),
            ("jwt_authn_access_denied{Jwt_is_expired}", Some(("jwt", None))),
            ("ext_authz_denied", Some(("ext-authz", None))),
            ("ext_authz_error", Some(("ext-authz", None))),
            ("via_upstream", None),
            ("route_not_found", None),
            ("external", None),
        ] {
            assert_eq!(denial(details), expected, "{details}");
        }
    }
}
