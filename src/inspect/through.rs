//! Proxies that are asked through their control planes: nobody has to reach the proxies for it, and a token says who may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Once;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::proxies::Target;
use super::tap::escaped;
use super::{PATIENCE, address, replicas};
use crate::client::{Answer, Site, Tls, get_of};

/// Where control planes are, and as whom they are asked.
#[derive(Args, Clone, Debug)]
pub struct Through {
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. The proxies that are connected to it are asked. Several, with commas
    /// between them or by several flags, where several control planes run. With --token-file also https://HOST:PORT, the webhooks' port,
    /// 15017 if none is named. `cluster`, or `cluster/NAMESPACE`: every control plane in the cluster that $KUBECONFIG or ~/.kube/config names,
    /// reached through its API server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    pub(super) control: Vec<String>,
    /// Ask the proxies through the control plane, with the token in this file: that of its --inspect-token-file, or in a cluster one
    /// of somebody who may get proxies/admin (weft.dev). Without it each proxy is asked itself
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// The root by which the control plane's certificate is checked (https://...)
    #[arg(long, value_name = "FILE", requires = "token_file")]
    pub(super) root_cert: Option<PathBuf>,
}

impl Through {
    /// Whether proxies are asked this way.
    pub(super) fn is_meant(&self) -> bool {
        self.token_file.is_some()
    }

    /// The debug ports of those that are named by them.
    ///
    /// # Errors
    /// One is no address.
    pub(super) fn debug_ports(&self) -> anyhow::Result<Vec<SocketAddr>> {
        if let Some(one) = self.without_debug_ports().first()
            && !self.is_meant()
        {
            bail!("--control {one}: only with --token-file are proxies asked by HTTPS");
        }
        let controls = replicas::expanded(&self.control)?;
        let plain = controls.iter().filter(|text| !is_secure(text));
        plain.map(|text| address(text.strip_prefix("http://").unwrap_or(text), 8080)).collect()
    }

    /// Those that are named by their webhooks' port, where they do not tell of themselves.
    pub(super) fn without_debug_ports(&self) -> Vec<String> {
        self.control.iter().filter(|text| is_secure(text)).cloned().collect()
    }

    fn sites(&self) -> anyhow::Result<Vec<Site>> {
        let Some(file) = &self.token_file else {
            bail!("--token-file has the token by which proxies are asked")
        };
        let token =
            std::fs::read_to_string(file).with_context(|| format!("--token-file {}", file.display()))?;
        let token = token.trim().to_owned();
        if token.is_empty() || token.contains(|c: char| c.is_control() || c.is_whitespace()) {
            bail!("--token-file {} holds no token", file.display());
        }
        let site = |text: &String| -> anyhow::Result<Site> {
            let (address, tls) = match text.strip_prefix("https://") {
                None => (address(text.strip_prefix("http://").unwrap_or(text), 8080)?, None),
                Some(rest) => {
                    let (name, address) = resolved(rest.trim_end_matches('/'))?;
                    let roots = self.root_cert.clone().with_context(|| {
                        format!(
                            "--control {text}: --root-cert FILE says by which root its certificate is checked (root-cert.pem in its \
                             --state-dir, /root-cert.pem at its debug port, the ConfigMap istio-ca-root-cert)"
                        )
                    })?;
                    (address, Some(Tls { name, roots }))
                }
            };
            if tls.is_none() && !address.ip().to_canonical().is_loopback() {
                bail!(
                    "--control {text}: a token is not sent in plain text over a network: ask by https://{} (--webhook-port), or from its machine \
                     (kubectl -n istio-system port-forward deploy/istiod 8080, and --control 127.0.0.1)",
                    address.ip()
                );
            }
            Ok(Site { address, tls, token: Some(token.clone()) })
        };
        replicas::expanded(&self.control)?.iter().map(site).collect()
    }

    /// Everybody who is connected to the control planes.
    ///
    /// # Errors
    /// None of them answers, or nobody is connected.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        Ok(self.listed()?.into_iter().map(|(_, one)| one.target).collect())
    }

    /// The same with their ids.
    fn listed(&self) -> anyhow::Result<Vec<(String, Listed)>> {
        static TOLD: Once = Once::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sites = self.sites()?;
        let (mut all, mut failed, mut hidden) = (BTreeMap::<String, Listed>::new(), Vec::new(), 0);
        for site in &sites {
            match runtime.block_on(listed(site)) {
                Ok(page) => {
                    hidden += page["hiddenNamespaces"].as_u64().unwrap_or_default();
                    for line in page["proxies"].as_array().into_iter().flatten() {
                        let Some((id, one)) = target(site, line) else { continue };
                        // It moves from one control plane to another, and may be said of both for a while.
                        if all.get(&id).is_none_or(|known| known.rank() < one.rank()) {
                            all.insert(id, one);
                        }
                    }
                }
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        if failed.len() == sites.len() {
            bail!("{}", failed.join("; "));
        }
        let unverified: Vec<_> =
            all.values().filter(|one| !one.verified).map(|one| one.target.name.clone()).collect();
        if !failed.is_empty() || hidden > 0 || !unverified.is_empty() {
            TOLD.call_once(|| {
                failed.iter().for_each(|why| eprintln!("weft: {why}; its proxies are left out"));
                if hidden > 0 {
                    eprintln!(
                        "weft: proxies of {hidden} namespaces are left out, for this token may not ask them"
                    );
                }
                if let Some(first) = unverified.first() {
                    eprintln!(
                        "weft: {} of {} proxies are connected in plain text, so nobody has verified that they are who they say: {first}{}",
                        unverified.len(),
                        all.len(),
                        if unverified.len() > 1 { ", ..." } else { "" }
                    );
                }
            });
        }
        if all.is_empty() {
            let names: Vec<_> = sites.iter().map(ToString::to_string).collect();
            bail!(
                "no proxy is connected to {}; of several control planes each knows its own",
                names.join(", ")
            );
        }
        let mut all: Vec<_> = all.into_iter().collect();
        shut_out(&mut all);
        all.sort_by_cached_key(|(_, one)| (one.target.name.clone(), one.target.key()));
        Ok(all)
    }

    /// One of them, by its id or `NAME.NAMESPACE`.
    ///
    /// # Errors
    /// None of the control planes knows it, or several proxies are called so.
    pub(super) fn target(&self, name: &str) -> anyhow::Result<Target> {
        chosen(&self.listed()?, name)
    }
}

/// A line of a control plane's list.
#[derive(Clone)]
struct Listed {
    target: Target,
    /// It has proven who it is.
    verified: bool,
    /// It has the name that its id says; none if that is another namespace's.
    named: bool,
}

impl Listed {
    /// What is told of it by another control plane counts more if this is higher.
    fn rank(&self) -> (bool, bool, bool) {
        (self.named, self.verified, self.target.closed.is_none())
    }
}

/// Nobody is asked who only says that they are whom another has proven to be: their numbers would stand under that one's name.
fn shut_out(all: &mut [(String, Listed)]) {
    let proven: BTreeSet<_> =
        all.iter().filter(|(_, one)| one.verified).map(|(_, one)| one.target.name.clone()).collect();
    for (id, one) in all {
        if !one.verified && proven.contains(&one.target.name) {
            let why = format!(
                "{id} is connected in plain text, and another has proven that it is {}",
                one.target.name
            );
            one.target.closed = Some(why);
        }
    }
}

/// The one that is meant: of this id, or the only one of this name. Who has only said who it is does not stand beside who has proven it.
fn chosen(all: &[(String, Listed)], name: &str) -> anyhow::Result<Target> {
    if let Some((_, one)) = all.iter().find(|(id, _)| id == name) {
        return Ok(one.target.clone());
    }
    let mut meant: Vec<_> = all.iter().filter(|(_, one)| one.target.name == name).collect();
    if meant.iter().any(|(_, one)| one.verified) {
        meant.retain(|(_, one)| one.verified);
    }
    match meant.as_slice() {
        [(_, one)] => Ok(one.target.clone()),
        [] => {
            let mut known: Vec<_> = all.iter().map(|(_, one)| one.target.name.as_str()).collect();
            known.dedup();
            bail!("no proxy {name:?} is connected; there are {}", known.join(", "))
        }
        several => {
            let ids: Vec<_> = several.iter().map(|(id, _)| id.as_str()).collect();
            bail!("several proxies are called {name:?}: say which by its id: {}", ids.join(", "))
        }
    }
}

fn is_secure(control: &str) -> bool {
    control.starts_with("https://")
}

fn prefix(id: &str) -> String {
    format!("/proxies/{}/admin", escaped(id))
}

/// The proxy of a line of a control plane's list.
fn target(site: &Site, line: &Value) -> Option<(String, Listed)> {
    let (id, name) = (line["proxy"].as_str()?, line["name"].as_str()?);
    let closed = match line["asked"].as_bool() {
        Some(true) => None,
        _ => Some(line["why"].as_str().unwrap_or("it cannot be asked through the control plane").to_owned()),
    };
    let target = Target { name: name.to_owned(), site: site.clone(), prefix: prefix(id), closed };
    // A control plane that does not tell it does not know it.
    let verified = line["verified"].as_bool().unwrap_or(false);
    Some((id.to_owned(), Listed { target, verified, named: name != id }))
}

async fn listed(site: &Site) -> anyhow::Result<Value> {
    let answer = get_of(site, "/proxies", PATIENCE).await.context(
        "is a control plane there? (--control: its debug port, from its own machine or by kubectl port-forward; https://HOST:15017)",
    )?;
    if !answer.status.is_success() {
        bail!("GET {site}/proxies: {}: {}", answer.status, said(&answer));
    }
    serde_json::from_slice(&answer.body)
        .with_context(|| format!("{site}/proxies gives no JSON; is it a control plane of Weft's?"))
}

/// What is to be said of control planes whose own pages cannot be had; none if there are no such.
pub(super) fn not_told(what: &str, controls: &[String]) -> Option<String> {
    (!controls.is_empty()).then(|| {
        format!(
            "the control plane's own {what} are left out of {}: they are at its debug port alone (--control IP, from its machine or by kubectl \
             port-forward deploy/istiod 8080)",
            controls.join(", ")
        )
    })
}

/// What an answer says against a question, in words.
pub(super) fn said(answer: &Answer) -> String {
    let page: Option<Value> = serde_json::from_slice(&answer.body).ok();
    let error = page.and_then(|page| page["error"].as_str().map(str::to_owned));
    error.unwrap_or_else(|| answer.text().trim().to_owned())
}

/// A host and the address that it has now.
fn resolved(text: &str) -> anyhow::Result<(String, SocketAddr)> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let (host, port) = match (text.rsplit_once(':'), bare.parse::<std::net::IpAddr>()) {
        (_, Ok(_)) | (None, _) => (bare, 15017),
        (Some((host, port)), _) => {
            let port = port.parse().ok().with_context(|| format!("{text:?} is no HOST:PORT"))?;
            (host.trim_start_matches('[').trim_end_matches(']'), port)
        }
    };
    let mut found = (host, port).to_socket_addrs().with_context(|| format!("{host} has no address"))?;
    let address = found.next().with_context(|| format!("{host} has no address"))?;
    Ok((host.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn control_planes_are_named_by_their_ports() {
        let of = |text: &str| resolved(text).map(|(host, at)| format!("{host} {at}")).unwrap_or_default();
        assert_eq!(of("127.0.0.1"), "127.0.0.1 127.0.0.1:15017");
        assert_eq!(of("127.0.0.1:443"), "127.0.0.1 127.0.0.1:443");
        assert_eq!(of("[::1]:443"), "::1 [::1]:443");
        assert_eq!(of("::1"), "::1 [::1]:15017");
        assert_eq!(of("127.0.0.1:x"), "");
        let through = |control: &[&str], token: bool| Through {
            control: control.iter().map(|text| (*text).to_owned()).collect(),
            token_file: token.then(|| "t".into()),
            root_cert: None,
        };
        let both = through(&["127.0.0.2", "https://localhost"], true);
        assert_eq!(both.debug_ports().unwrap(), ["127.0.0.2:8080".parse().unwrap()]);
        let refused = through(&["https://localhost"], false).debug_ports().unwrap_err().to_string();
        assert!(refused.contains("--token-file"), "{refused}");
    }

    #[test]
    fn a_token_goes_in_plain_text_to_this_machine_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "t\n").unwrap();
        let sites = |control: &str| {
            let root_cert = Some("root.pem".into());
            Through { control: vec![control.to_owned()], token_file: Some(file.clone()), root_cert }.sites()
        };
        assert_eq!(sites("127.0.0.1").unwrap()[0].to_string(), "http://127.0.0.1:8080");
        assert_eq!(sites("https://10.0.0.1").unwrap()[0].to_string(), "https://10.0.0.1:15017");
        let refused = sites("10.0.0.1").err().unwrap().to_string();
        assert!(refused.contains("https://10.0.0.1"), "{refused}");
    }

    #[test]
    fn whom_a_control_plane_cannot_ask_is_known_with_why() {
        let site = Site::plain("127.0.0.1:8080".parse().unwrap());
        let id = "sidecar~10.0.0.1~web-1.shop~d";
        let line = json!({"proxy": id, "name": "web-1.shop", "asked": true, "why": null});
        let (_, one) = target(&site, &line).unwrap();
        assert_eq!(
            one.target.key(),
            "http://127.0.0.1:8080/proxies/sidecar%7E10.0.0.1%7Eweb-1.shop%7Ed/admin"
        );
        let line = json!({"proxy": id, "name": "web-1.shop", "asked": false, "why": "it is an Envoy"});
        assert_eq!(target(&site, &line).unwrap().1.target.closed.as_deref(), Some("it is an Envoy"));
    }

    #[test]
    fn of_several_that_are_called_alike_none_is_chosen_by_chance() {
        let site = Site::plain("127.0.0.1:8080".parse().unwrap());
        let one = |ip: &str, verified: bool| {
            let id = format!("sidecar~{ip}~web-1.shop~d");
            let line = json!({"proxy": id, "name": "web-1.shop", "asked": true, "verified": verified});
            target(&site, &line).unwrap()
        };
        let id = "sidecar~10.0.0.2~web-1.shop~d";
        let both = [one("10.0.0.1", true), one("10.0.0.2", true)];
        let refused = chosen(&both, "web-1.shop").err().unwrap().to_string();
        assert!(
            refused.contains("sidecar~10.0.0.1~web-1.shop~d, sidecar~10.0.0.2~web-1.shop~d"),
            "{refused}"
        );
        assert_eq!(chosen(&both, id).unwrap().prefix, prefix(id));
        let proven = [one("10.0.0.1", false), one("10.0.0.2", true)];
        assert_eq!(chosen(&proven, "web-1.shop").unwrap().prefix, prefix(id));
        let mut shown = proven.clone();
        shut_out(&mut shown);
        assert_eq!(shown.map(|(_, one)| one.target.closed.is_some()), [true, false]);
        assert!(chosen(&[one("10.0.0.1", false), one("10.0.0.2", false)], "web-1.shop").is_err());
        // Whoever says the id of another namespace's proxy does not hide it.
        let line =
            json!({"proxy": id, "name": id, "asked": false, "verified": true, "why": "another's name"});
        let (_, rogue) = target(&site, &line).unwrap();
        assert!(rogue.rank() < one("10.0.0.2", false).1.rank());
        let unknown = chosen(&both, "web-2.shop").err().unwrap().to_string();
        assert!(unknown.ends_with("there are web-1.shop"), "{unknown}");
    }

    #[test]
    fn a_control_plane_by_https_tells_nothing_of_itself() {
        let control = ["127.0.0.2", "https://localhost"].map(str::to_owned).to_vec();
        let through = Through { control, token_file: Some("t".into()), root_cert: None };
        assert_eq!(through.without_debug_ports(), ["https://localhost"]);
        let told = not_told("events", &through.without_debug_ports()).unwrap();
        assert!(told.contains("https://localhost") && told.contains("debug port"), "{told}");
        assert_eq!(not_told("events", &[]), None);
    }
}
