//! Who must not come in at a STRICT port: plain text, no certificate, another trust domain, an authority that nobody knows. A
//! certificate of the mesh must, or the refusals would prove nothing.

use std::time::Duration;

use super::observe::credentials::{Authority, Credentials};
use super::observe::http::{Connection, Request};
use super::observe::tls::{Outcome, dial};
use super::report::Check;
use super::scene::{NAMESPACE, Scene};

/// What the observer shows at each port.
pub struct Strangers {
    /// Signs for the mesh's own trust domain, but nobody trusts it.
    pub unknown: Authority,
    /// A trust domain that is not the mesh's.
    pub domain: String,
}

impl Strangers {
    /// An authority made just now, and a trust domain of nobody's.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { unknown: Authority::unknown()?, domain: "elsewhere.example".to_owned() })
    }
}

/// Knocks at every workload's port as each of them.
pub async fn checks(scene: &Scene, strangers: &Strangers) -> anyhow::Result<Vec<Check>> {
    let path = format!("/ns/{NAMESPACE}/sa/order-service");
    let foreign =
        Authority::of_mesh(scene.mesh.state_dir())?.issue(&format!("spiffe://{}{path}", strangers.domain))?;
    let unknown = strangers.unknown.issue(&format!("spiffe://cluster.local{path}"))?;
    Ok(vec![
        knock(scene, "a certificate of the mesh", Some(&scene.own), true).await?,
        plain(scene).await?,
        knock(scene, "no certificate", None, false).await?,
        knock(scene, "a certificate of another trust domain", Some(&foreign), false).await?,
        knock(scene, "a certificate of an unknown CA", Some(&unknown), false).await?,
    ])
}

fn verdict(what: &str, welcome: bool, refused: usize, all: usize, words: &str) -> Check {
    let (wanted, expected) = if welcome {
        (0, format!("{all} of {all} ports answer"))
    } else {
        (all, format!("{all} of {all} ports refuse"))
    };
    let seen = if welcome {
        format!("{} of {all} ports answer{words}", all - refused)
    } else {
        format!("{refused} of {all} ports refuse{words}")
    };
    Check::new(format!("STRICT: {what}"), expected, seen, refused == wanted)
}

fn in_brackets(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

async fn knock(
    scene: &Scene,
    what: &str,
    shown: Option<&Credentials>,
    welcome: bool,
) -> anyhow::Result<Check> {
    let (mut refused, mut words) = (0, String::new());
    let workloads = scene.workloads();
    for workload in &workloads {
        match dial(scene.port_of(workload)?, shown, &Request::get("observer", super::apps::QUIET)).await? {
            Outcome::Refused(why) => {
                refused += 1;
                words = why;
            }
            Outcome::Answered(_, answer) if welcome && answer.status() != 200 => {
                refused += 1;
                words = format!("{} answers {}", workload.id, answer.status());
            }
            Outcome::Answered(..) => {}
        }
    }
    Ok(verdict(what, welcome, refused, workloads.len(), &in_brackets(&words)))
}

async fn plain(scene: &Scene) -> anyhow::Result<Check> {
    let (mut refused, mut words) = (0, String::new());
    let workloads = scene.workloads();
    for workload in &workloads {
        let mut connection = Connection::open(scene.port_of(workload)?, Duration::from_secs(5))
            .await
            .map_err(|e| anyhow::anyhow!("{}: {e}", workload.id))?;
        match connection.exchange(&Request::get("observer", super::apps::QUIET)).await {
            // Any HTTP answer, an error too, means that plain text was read as a request.
            Ok(answer) => words = format!("{} answers {}", workload.id, answer.status()),
            Err(why) => {
                refused += 1;
                if words.is_empty() {
                    words = why.to_string();
                }
            }
        }
    }
    Ok(verdict("a request in plain text", false, refused, workloads.len(), &in_brackets(&words)))
}
