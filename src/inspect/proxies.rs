//! Which proxies are asked for what they have counted, and who answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{address, ask_json};

/// Where proxies tell their counts, in Istio's pods as in Weft's.
const PORT: u16 = 15090;
/// How long a proxy may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// As many are asked at the same time.
const AT_ONCE: usize = 64;

/// Who is asked.
#[derive(Args, Debug)]
pub struct Proxies {
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. The proxies that are connected to it are asked
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", conflicts_with = "proxies")]
    control: String,
    /// Ask this proxy, and no control plane: IP:PORT; IP alone is port 15090 where counts are asked for,
    /// and 15000, the admin interface, where requests are. May be given several times
    #[arg(long = "proxy", value_name = "ADDRESS")]
    proxies: Vec<String>,
}

/// One who is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// What it is called.
    pub(super) name: String,
    /// Where its metrics are.
    pub(super) at: SocketAddr,
}

impl Proxies {
    /// Where the control plane is, unless proxies were named.
    ///
    /// # Errors
    /// It is no address.
    pub(super) fn control(&self) -> anyhow::Result<Option<SocketAddr>> {
        self.proxies.is_empty().then(|| address(&self.control, 8080)).transpose()
    }

    /// Whether they are named one by one.
    pub(super) fn are_named(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// Those who are there now, where they tell their counts.
    ///
    /// # Errors
    /// The control plane does not answer, or nobody is connected to it.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        self.targets_at(PORT)
    }

    /// Those who are there now, at this port.
    ///
    /// # Errors
    /// The control plane does not answer, or nobody is connected to it.
    pub(super) fn targets_at(&self, port: u16) -> anyhow::Result<Vec<Target>> {
        if !self.proxies.is_empty() {
            let named = self.proxies.iter().map(|text| {
                let at = address(text, port)?;
                Ok(Target { name: at.to_string(), at })
            });
            return named.collect::<anyhow::Result<Vec<_>>>();
        }
        let at = address(&self.control, 8080)?;
        let hint =
            format!("is a control plane's debug port at {at}? (--control says where, --proxy names proxies)");
        let page = ask_json(at, "/debug/syncz", &hint)?;
        let mut found: Vec<Target> =
            page.as_array().into_iter().flatten().filter_map(|line| target(line, port)).collect();
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

impl<T> Asked<T> {
    /// Who was silent, in a line for people; none if nobody was.
    pub(super) fn missing(&self) -> Option<String> {
        let (first, why) = self.silent.first()?;
        let (silent, all) = (self.silent.len(), self.targets);
        Some(format!("{silent} of {all} proxies did not answer; {first}: {why}"))
    }

    /// The same for programs.
    pub(super) fn proxies(&self) -> Value {
        let silent: Vec<_> =
            self.silent.iter().map(|(name, why)| json!({"name": name, "error": why})).collect();
        json!({"asked": self.targets, "silent": silent})
    }
}

/// The proxy of a line of `/debug/syncz`: its node id is `KIND~IP~NAME.NAMESPACE~DOMAIN`.
fn target(line: &Value, port: u16) -> Option<Target> {
    let mut parts = line["proxy"].as_str()?.split('~').skip(1);
    let ip: IpAddr = parts.next()?.parse().ok()?;
    Some(Target { name: parts.next()?.to_owned(), at: SocketAddr::new(ip, port) })
}

/// What proxies have answered.
pub(super) struct Asked<T> {
    /// Who answered, and what was made of it.
    pub(super) answers: Vec<(Target, T)>,
    /// How many were asked.
    pub(super) targets: usize,
    /// The names of those that do not answer, with why.
    pub(super) silent: Vec<(String, String)>,
}

/// Asks them for a page, of which `read` makes what is kept. Answers are in the order of their names.
pub(super) async fn ask<T: Send + 'static>(targets: &[Target], path: &str, read: fn(&str) -> T) -> Asked<T> {
    let mut waiting = targets.iter().cloned();
    let mut under_way: JoinSet<(Target, anyhow::Result<T>)> = JoinSet::new();
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    loop {
        while under_way.len() < AT_ONCE
            && let Some(target) = waiting.next()
        {
            let path = path.to_owned();
            under_way.spawn(async move {
                let page = crate::client::get(target.at, &path, PATIENCE).await;
                let page = page.and_then(|answer| {
                    anyhow::ensure!(answer.status.is_success(), "{} {}", answer.status, answer.text().trim());
                    Ok(read(&answer.text()))
                });
                (target, page)
            });
        }
        match under_way.join_next().await {
            Some(Ok((target, Ok(page)))) => answers.push((target, page)),
            Some(Ok((target, Err(error)))) => silent.push((target.name, format!("{error:#}"))),
            Some(Err(_)) => {}
            None => break,
        }
    }
    answers.sort_by(|(a, _), (b, _)| a.cmp(b));
    silent.sort();
    Asked { answers, targets: targets.len(), silent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connected_proxy_is_asked_where_its_node_id_says_that_it_is() {
        let found =
            target(&json!({"proxy": "sidecar~10.1.2.3~web-1.shop~shop.svc.cluster.local"}), PORT).unwrap();
        assert_eq!((found.name.as_str(), found.at.to_string().as_str()), ("web-1.shop", "10.1.2.3:15090"));
        assert_eq!(target(&json!({"proxy": "odd"}), PORT), None);
    }
}
