//! Which proxies are asked, and what they answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::{address, ask_json};
use super::{Edges, Pages, read};

/// Where proxies tell their counts, in Istio's pods as in Weft's.
const PORT: u16 = 15090;
/// How long a proxy may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many are asked at the same time.
const AT_ONCE: usize = 64;

/// Who is asked.
#[derive(Args, Debug)]
pub(in super::super) struct Proxies {
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. The proxies that are connected to it are asked
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", conflicts_with = "proxies")]
    control: String,
    /// Ask this proxy, and no control plane: IP:PORT; IP alone is port 15090. May be given several times
    #[arg(long = "proxy", value_name = "ADDRESS")]
    proxies: Vec<String>,
    /// Only what comes from this namespace or goes there
    #[arg(long, short, value_name = "NAMESPACE")]
    pub(in super::super) namespace: Option<String>,
}

/// One who is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Target {
    /// What it is called.
    pub(in super::super) name: String,
    at: SocketAddr,
}

impl Proxies {
    /// Those who are there now.
    ///
    /// # Errors
    /// The control plane does not answer, or nobody is connected to it.
    pub(in super::super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        if !self.proxies.is_empty() {
            let named = self.proxies.iter().map(|text| {
                let at = address(text, PORT)?;
                Ok(Target { name: at.to_string(), at })
            });
            return named.collect::<anyhow::Result<Vec<_>>>();
        }
        let at = address(&self.control, 8080)?;
        let hint =
            format!("is a control plane's debug port at {at}? (--control says where, --proxy names proxies)");
        let page = ask_json(at, "/debug/syncz", &hint)?;
        let mut found: Vec<Target> = page.as_array().into_iter().flatten().filter_map(target).collect();
        found.sort();
        found.dedup();
        if found.is_empty() {
            bail!(
                "no proxy is connected to the control plane at {at}; of several control planes each knows its own"
            );
        }
        Ok(found)
    }
}

impl Asked {
    /// Who was silent, in a line for people; none if nobody was.
    pub(in super::super) fn missing(&self) -> Option<String> {
        let (first, why) = self.silent.first()?;
        let (silent, all) = (self.silent.len(), self.targets);
        Some(format!("{silent} of {all} proxies did not answer; {first}: {why}"))
    }

    /// The same for programs.
    pub(in super::super) fn proxies(&self) -> Value {
        let silent: Vec<_> =
            self.silent.iter().map(|(name, why)| json!({"name": name, "error": why})).collect();
        json!({"asked": self.targets, "silent": silent})
    }
}

/// The proxy of a line of `/debug/syncz`: its node id is `KIND~IP~NAME.NAMESPACE~DOMAIN`.
fn target(line: &Value) -> Option<Target> {
    let mut parts = line["proxy"].as_str()?.split('~').skip(1);
    let ip: IpAddr = parts.next()?.parse().ok()?;
    Some(Target { name: parts.next()?.to_owned(), at: SocketAddr::new(ip, PORT) })
}

/// What proxies have counted.
pub(in super::super) struct Asked {
    pub(in super::super) pages: Pages,
    /// How many were asked.
    pub(in super::super) targets: usize,
    /// The names of those that do not answer, with why.
    pub(in super::super) silent: Vec<(String, String)>,
}

/// Asks them.
pub(in super::super) async fn ask(targets: &[Target]) -> Asked {
    let mut waiting = targets.iter().cloned();
    let mut under_way: JoinSet<(Target, anyhow::Result<Edges>)> = JoinSet::new();
    let (mut pages, mut silent) = (BTreeMap::new(), Vec::new());
    loop {
        while under_way.len() < AT_ONCE
            && let Some(target) = waiting.next()
        {
            under_way.spawn(async move {
                let page = crate::client::get(target.at, "/stats/prometheus?filter=istio", PATIENCE).await;
                let page = page.and_then(|answer| {
                    anyhow::ensure!(answer.status.is_success(), "{}", answer.status);
                    Ok(read(&answer.text()))
                });
                (target, page)
            });
        }
        match under_way.join_next().await {
            Some(Ok((target, Ok(page)))) => drop(pages.insert(target.at, page)),
            Some(Ok((target, Err(error)))) => silent.push((target.name, format!("{error:#}"))),
            Some(Err(_)) => {}
            None => break,
        }
    }
    silent.sort();
    Asked { pages, targets: targets.len(), silent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connected_proxy_is_asked_where_its_node_id_says_that_it_is() {
        let found = target(&json!({"proxy": "sidecar~10.1.2.3~web-1.shop~shop.svc.cluster.local"})).unwrap();
        assert_eq!((found.name.as_str(), found.at.to_string().as_str()), ("web-1.shop", "10.1.2.3:15090"));
        assert_eq!(target(&json!({"proxy": "odd"})), None);
    }
}
