//! `weft report compliance`: what an auditor asks of a mesh, from what its proxies count: which share of the traffic has mutual TLS,
//! which workloads have policies, how old certificates are, which edges are in plain text and which handshakes an adversary may
//! decrypt who keeps them for a quantum computer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_control::serve::canary::labelled;

use super::proxies::{Proxies, ask};
use super::{Output, rows};

/// Reports
#[derive(Subcommand, Debug)]
pub enum ReportCommand {
    /// Says which share of the traffic has mutual TLS, which workloads have policies, how old certificates are, and which edges are
    /// in plain text or without post-quantum key exchange
    Compliance(ComplianceArgs),
}

/// Of which mesh
#[derive(Args, Debug)]
pub struct ComplianceArgs {
    #[command(flatten)]
    proxies: Proxies,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The key exchange that a quantum computer does not break.
const POST_QUANTUM: &str = "X25519MLKEM768";

/// Prints it.
///
/// # Errors
/// The control plane does not answer, or no proxy does.
pub fn main(command: &ReportCommand) -> anyhow::Result<()> {
    let ReportCommand::Compliance(args) = command;
    let targets = args.proxies.targets()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(ask(&targets, "/stats/prometheus", str::to_owned));
    if asked.answers.is_empty() {
        bail!("{}", asked.missing().unwrap_or_default());
    }
    let mut seen = Seen::default();
    asked.answers.iter().for_each(|(target, page)| seen.take(&target.name, page));
    let silent: Vec<_> = asked.silent.iter().map(|(name, why)| json!({"proxy": name, "why": why})).collect();
    let report = seen.report(asked.targets, &silent, OffsetDateTime::now_utc());
    match args.output {
        Output::Json => println!("{report:#}"),
        Output::Text => print!("{}", text(&report)),
    }
    Ok(())
}

/// What proxies have counted.
#[derive(Debug, Default)]
struct Seen {
    /// By caller, called workload and whether with mutual TLS: requests, and connections of bytes.
    edges: BTreeMap<(String, String, String), (f64, f64)>,
    /// Handshakes of a proxy's listeners by key exchange.
    exchanges: BTreeMap<String, BTreeMap<String, f64>>,
    /// Proxies that enforce policies, of all.
    policies: BTreeMap<String, bool>,
    /// By proxy, kind, secret and serial: begin and end.
    certificates: BTreeMap<[String; 4], (Option<f64>, Option<f64>)>,
}

impl Seen {
    /// Takes a page of metrics.
    fn take(&mut self, proxy: &str, page: &str) {
        let mut enforces = false;
        for (name, labels, value) in page.lines().filter_map(labelled) {
            let label = |key: &str| {
                let found = labels.iter().find(|(name, _)| *name == key);
                found.map_or(String::new(), |(_, value)| (*value).to_owned())
            };
            match name {
                "istio_requests_total" | "istio_tcp_connections_opened_total"
                    if label("reporter") == "destination" =>
                {
                    let caller = match label("source_principal").as_str() {
                        "" | "unknown" => label("source_workload"),
                        principal => principal.to_owned(),
                    };
                    let callee = format!(
                        "{}.{}",
                        label("destination_workload"),
                        label("destination_workload_namespace")
                    );
                    let edge =
                        self.edges.entry((caller, callee, label("connection_security_policy"))).or_default();
                    match name {
                        "istio_requests_total" => edge.0 += value,
                        _ => edge.1 += value,
                    }
                }
                "envoy_listener_ssl_curves" => {
                    let of = self.exchanges.entry(proxy.to_owned()).or_default();
                    *of.entry(label("envoy_ssl_curve")).or_default() += value;
                }
                // There only where a policy is in force.
                "envoy_http_rbac_allowed" | "envoy_tcp_rbac_allowed" => enforces = true,
                "certificate_start_time" | "certificate_expiry_time" => {
                    let key = [proxy.to_owned(), label("certificate"), label("secret"), label("serial")];
                    let times = self.certificates.entry(key).or_default();
                    match name {
                        "certificate_start_time" => times.0 = Some(value),
                        _ => times.1 = Some(value),
                    }
                }
                _ => {}
            }
        }
        self.policies.insert(proxy.to_owned(), enforces);
    }

    fn report(&self, asked: usize, silent: &[Value], now: OffsetDateTime) -> Value {
        let share = |part: f64, whole: f64| if whole > 0.0 { json!(part / whole) } else { Value::Null };
        let sum = |policy: Option<&str>| -> f64 {
            let of = self.edges.iter().filter(|((.., p), _)| policy.is_none_or(|policy| p == policy));
            of.map(|(_, (requests, connections))| requests + connections).sum()
        };
        let edges: Vec<_> = self
            .edges
            .iter()
            .map(|((from, to, policy), (requests, connections))| {
                json!({"from": from, "to": to, "security": policy, "requests": requests, "connections": connections})
            })
            .collect();
        let plain: Vec<_> = edges.iter().filter(|edge| edge["security"] != "mutual_tls").cloned().collect();
        let handshakes: Vec<_> = self
            .exchanges
            .iter()
            .map(|(proxy, by)| {
                let all: f64 = by.values().sum();
                let good = by.get(POST_QUANTUM).copied().unwrap_or_default();
                json!({"proxy": proxy, "handshakes": all, "postQuantum": good, "keyExchanges": by})
            })
            .collect();
        let total = |key: &str| -> f64 { handshakes.iter().filter_map(|one| one[key].as_f64()).sum() };
        let weak: Vec<_> =
            handshakes.iter().filter(|one| one["handshakes"] != one["postQuantum"]).cloned().collect();
        let without: Vec<_> =
            self.policies.iter().filter(|(_, has)| !**has).map(|(proxy, _)| proxy).collect();
        let time = |seconds: Option<f64>| {
            let time = OffsetDateTime::from_unix_timestamp(seconds? as i64).ok()?;
            time.format(&Rfc3339).ok()
        };
        let certificates: Vec<_> = self
            .certificates
            .iter()
            .map(|([proxy, kind, secret, serial], (start, end))| {
                let now = now.unix_timestamp() as f64;
                let left = start.zip(*end).map(|(start, end)| (end - now) / (end - start));
                json!({"proxy": proxy, "kind": kind, "secret": secret, "serial": serial,
                    "begins": time(*start), "expires": time(*end),
                    "ageHours": start.map(|start| (now - start) / 3600.0), "lifeLeft": left})
            })
            .collect();
        json!({
            "at": now.format(&Rfc3339).unwrap_or_default(),
            "proxies": {"asked": asked, "answered": self.policies.len(), "silent": silent},
            "mutualTls": {
                "requestsAndConnections": sum(None),
                "share": share(sum(Some("mutual_tls")), sum(None)),
                "edges": edges,
                "plaintextEdges": plain,
            },
            "postQuantum": {
                "handshakes": total("handshakes"),
                "share": share(total("postQuantum"), total("handshakes")),
                "byProxy": handshakes,
                "proxiesWithOthers": weak,
            },
            "policies": {
                "workloads": self.policies.len(),
                "share": share((self.policies.len() - without.len()) as f64, self.policies.len() as f64),
                "without": without,
            },
            "certificates": certificates,
        })
    }
}

fn text(report: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let percent = |value: &Value| value.as_f64().map_or("-".to_owned(), |n| format!("{:.2} %", n * 100.0));
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |n| n.to_string());
    let (proxies, tls) = (&report["proxies"], &report["mutualTls"]);
    let (quantum, policies) = (&report["postQuantum"], &report["policies"]);
    let mut out = format!(
        "{}: {} of {} proxies answered\n\nmutual TLS     {} of {} requests and connections that the proxies still count\n\
         post-quantum   {} of {} handshakes\npolicies       {} of {} workloads\n",
        word(&report["at"]),
        proxies["answered"],
        proxies["asked"],
        percent(&tls["share"]),
        number(&tls["requestsAndConnections"]),
        percent(&quantum["share"]),
        number(&quantum["handshakes"]),
        percent(&policies["share"]),
        policies["workloads"],
    );
    let mut section = |title: &str, head: &[&str], table: Vec<Vec<String>>| {
        if !table.is_empty() {
            out.push_str(&format!("\n{title}\n{}", rows::table(head, &table)));
        }
    };
    let edge =
        |e: &Value| vec![word(&e["from"]), word(&e["to"]), number(&e["requests"]), number(&e["connections"])];
    section(
        "Edges in plain text",
        &["FROM", "TO", "REQUESTS", "CONNECTIONS"],
        list(&tls["plaintextEdges"]).iter().map(edge).collect(),
    );
    let weak = |one: &Value| {
        let by = one["keyExchanges"].as_object().into_iter().flatten();
        let by: Vec<_> = by.map(|(name, n)| format!("{name}: {}", number(n))).collect();
        vec![word(&one["proxy"]), by.join(", ")]
    };
    section(
        "Proxies with handshakes that are not post-quantum",
        &["PROXY", "KEY EXCHANGES"],
        list(&quantum["proxiesWithOthers"]).iter().map(weak).collect(),
    );
    section(
        "Workloads without an authorization policy",
        &["PROXY"],
        list(&policies["without"]).iter().map(|name| vec![word(name)]).collect(),
    );
    // A root is the same at all proxies.
    let mut told = BTreeSet::new();
    let certificates = list(&report["certificates"]);
    let shared = |one: &Value| matches!(one["kind"].as_str(), Some("root" | "intermediate"));
    let certificate = |one: &Value| {
        let whose = if shared(one) { "all".to_owned() } else { word(&one["proxy"]) };
        let age = one["ageHours"].as_f64().map_or("-".to_owned(), |h| format!("{h:.1} h"));
        let kind = word(&one["kind"]);
        vec![kind, whose, word(&one["secret"]), age, percent(&one["lifeLeft"]), word(&one["expires"])]
    };
    let once = |one: &&Value| !shared(one) || told.insert(word(&one["serial"]));
    let table = certificates.iter().filter(once).map(certificate).collect();
    section("Certificates", &["KIND", "PROXY", "SECRET", "AGE", "LIFE LEFT", "EXPIRES"], table);
    let silent = |one: &Value| vec![word(&one["proxy"]), word(&one["why"])];
    section("No answer", &["PROXY", "WHY"], list(&proxies["silent"]).iter().map(silent).collect());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# TYPE istio_requests_total counter
istio_requests_total{reporter="destination",source_principal="spiffe://d/ns/a/sa/front",source_workload="front",destination_workload="back",destination_workload_namespace="a",connection_security_policy="mutual_tls"} 97
istio_requests_total{reporter="destination",source_principal="unknown",source_workload="cron",destination_workload="back",destination_workload_namespace="a",connection_security_policy="none"} 3
istio_requests_total{reporter="source",source_workload="back",destination_workload="other",connection_security_policy="unknown"} 1000
envoy_listener_ssl_curves{envoy_ssl_curve="X25519MLKEM768",listener_address="0.0.0.0_80"} 3
envoy_listener_ssl_curves{envoy_ssl_curve="X25519",listener_address="0.0.0.0_80"} 1
certificate_start_time{secret="default",certificate="leaf",serial="1"} 0
certificate_expiry_time{secret="default",certificate="leaf",serial="1"} 86400
envoy_http_rbac_allowed{http_conn_manager_prefix="inbound"} 0
"#;

    fn report() -> Value {
        let mut seen = Seen::default();
        seen.take("back-1.a", PAGE);
        seen.take("idle-1.a", "# TYPE envoy_server_live gauge\nenvoy_server_live 1\n");
        let now = OffsetDateTime::from_unix_timestamp(64_800).unwrap();
        seen.report(3, &[json!({"proxy": "gone-1.a", "why": "no route"})], now)
    }

    #[test]
    fn shares_are_of_what_was_counted_at_the_called_workload() {
        let report = report();
        assert_eq!(report["mutualTls"]["share"], 0.97);
        let plain = &report["mutualTls"]["plaintextEdges"];
        assert_eq!(plain.as_array().unwrap().len(), 1);
        assert_eq!((&plain[0]["from"], &plain[0]["requests"]), (&json!("cron"), &json!(3.0)));
        assert_eq!(report["postQuantum"]["share"], 0.75);
        assert_eq!(report["policies"]["share"], 0.5);
        assert_eq!(report["policies"]["without"], json!(["idle-1.a"]));
        let certificate = &report["certificates"][0];
        assert_eq!((&certificate["ageHours"], &certificate["lifeLeft"]), (&json!(18.0), &json!(0.25)));
    }

    #[test]
    fn what_is_wrong_is_listed_for_people() {
        let text = text(&report());
        for line in [
            "mutual TLS     97.00 % of 100 requests and connections that the proxies still count",
            "post-quantum   75.00 % of 4 handshakes",
            "policies       50.00 % of 2 workloads",
            "cron  back.a  3         0",
            "back-1.a  X25519: 1, X25519MLKEM768: 3",
            "idle-1.a",
            "gone-1.a  no route",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.contains("18.0 h  25.00 %"), "{text}");
    }
}
