//! Which proxies are asked for what they have counted, and who answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::through::{Through, said};
use super::{address, ask_json};
use crate::client::{Answer, Site};

/// Where proxies tell their counts, in Istio's pods as in Weft's.
const PORT: u16 = 15090;
/// How long a proxy may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// As many are asked at the same time.
const AT_ONCE: usize = 64;
/// And through a control plane, where each reader may have 48 pages at the same time: two commands find room.
const AT_ONCE_THROUGH: usize = 24;

/// Who is asked.
#[derive(Args, Debug)]
pub struct Proxies {
    #[command(flatten)]
    through: Through,
    /// Ask this proxy, and no control plane: IP:PORT; IP alone is port 15090 where counts are asked for,
    /// and 15000, the admin interface, where requests are. May be given several times
    #[arg(long = "proxy", value_name = "ADDRESS", conflicts_with_all = ["control", "token_file"])]
    proxies: Vec<String>,
}

/// One who is asked.
#[derive(Clone)]
pub(super) struct Target {
    /// What it is called.
    pub(super) name: String,
    /// Who answers for it.
    pub(super) site: Site,
    /// What goes before a page's path there.
    pub(super) prefix: String,
    /// Why it cannot be asked, if it cannot.
    pub(super) closed: Option<String>,
}

impl Target {
    /// A proxy that is asked itself.
    pub(super) fn at(name: String, at: SocketAddr) -> Self {
        Self { name, site: Site::plain(at), prefix: String::new(), closed: None }
    }

    /// What no other proxy has.
    pub(super) fn key(&self) -> String {
        format!("{}{}", self.site, self.prefix)
    }

    /// Asks for a page.
    ///
    /// # Errors
    /// There is no answer, or none of success.
    pub(super) async fn get(&self, path: &str, limit: Duration) -> anyhow::Result<Answer> {
        if let Some(why) = &self.closed {
            bail!("{why}");
        }
        let answer = crate::client::get_of(&self.site, &format!("{}{path}", self.prefix), limit).await?;
        if !answer.status.is_success() {
            bail!("{} {}", answer.status, said(&answer));
        }
        Ok(answer)
    }
}

impl Proxies {
    /// Where control planes tell their own pages, unless proxies were named.
    ///
    /// # Errors
    /// One is no address.
    pub(super) fn controls(&self) -> anyhow::Result<Vec<SocketAddr>> {
        if self.are_named() { Ok(Vec::new()) } else { self.through.debug_ports() }
    }

    /// Control planes that do not tell their own pages where they are named.
    pub(super) fn controls_without_pages(&self) -> Vec<String> {
        if self.are_named() { Vec::new() } else { self.through.without_debug_ports() }
    }

    /// Whether they are named one by one.
    pub(super) fn are_named(&self) -> bool {
        !self.proxies.is_empty()
    }

    /// Whether they are asked through their control planes.
    pub(super) fn are_asked_through(&self) -> bool {
        self.through.is_meant()
    }

    /// Those who are there now, where they tell their counts.
    ///
    /// # Errors
    /// The control plane does not answer, or nobody is connected to it.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        self.targets_at(PORT)
    }

    /// Those who are there now, at this port, or through their control planes.
    ///
    /// # Errors
    /// The control plane does not answer, or nobody is connected to it.
    pub(super) fn targets_at(&self, port: u16) -> anyhow::Result<Vec<Target>> {
        if self.are_named() {
            let named = self.proxies.iter().map(|text| {
                let at = address(text, port)?;
                Ok(Target::at(at.to_string(), at))
            });
            return named.collect::<anyhow::Result<Vec<_>>>();
        }
        if self.through.is_meant() {
            return self.through.targets();
        }
        let (mut found, mut asked) = (Vec::new(), Vec::new());
        for at in self.through.debug_ports()? {
            let hint = format!(
                "is a control plane's debug port at {at}? (--control says where, --proxy names proxies)"
            );
            let page = ask_json(at, "/debug/syncz", &hint)?;
            found.extend(page.as_array().into_iter().flatten().filter_map(|line| target(line, port)));
            asked.push(at.to_string());
        }
        found.sort_by_key(|target| (target.name.clone(), target.site.address));
        found.dedup_by_key(|target| (target.name.clone(), target.site.address));
        if found.is_empty() {
            bail!(
                "no proxy is connected to the control plane at {}; of several control planes each knows its own",
                asked.join(", ")
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
    Some(Target::at(parts.next()?.to_owned(), SocketAddr::new(ip, port)))
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

/// As many of these are asked at the same time.
pub(super) fn at_once(targets: &[Target]) -> usize {
    if targets.iter().any(|target| !target.prefix.is_empty()) { AT_ONCE_THROUGH } else { AT_ONCE }
}

/// Asks them for a page, of which `read` makes what is kept. Answers are in the order of their names.
pub(super) async fn ask<T: Send + 'static>(targets: &[Target], path: &str, read: fn(&str) -> T) -> Asked<T> {
    let mut waiting = targets.iter().cloned();
    let mut under_way: JoinSet<(Target, anyhow::Result<T>)> = JoinSet::new();
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    let at_once = at_once(targets);
    loop {
        while under_way.len() < at_once
            && let Some(target) = waiting.next()
        {
            let path = path.to_owned();
            under_way.spawn(async move {
                let page = target.get(&path, PATIENCE).await;
                (target, page.map(|answer| read(&answer.text())))
            });
        }
        match under_way.join_next().await {
            Some(Ok((target, Ok(page)))) => answers.push((target, page)),
            Some(Ok((target, Err(error)))) => silent.push((target.name, format!("{error:#}"))),
            Some(Err(_)) => {}
            None => break,
        }
    }
    answers.sort_by_cached_key(|(target, _)| (target.name.clone(), target.key()));
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
        assert_eq!((found.name.as_str(), found.key().as_str()), ("web-1.shop", "http://10.1.2.3:15090"));
        assert!(target(&json!({"proxy": "odd"}), PORT).is_none());
    }
}
