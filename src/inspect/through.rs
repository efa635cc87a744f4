//! Proxies that are asked through their control planes: nobody has to reach the proxies for it, and a token says who may.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Once;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use super::proxies::Target;
use super::tap::escaped;
use super::{PATIENCE, address};
use crate::client::{Answer, Site, Tls, get_of};

/// Where control planes are, and as whom they are asked.
#[derive(Args, Clone, Debug)]
pub struct Through {
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. The proxies that are connected to it are asked. Several, with commas
    /// between them or by several flags, where several control planes run. With --token-file also https://HOST:PORT, the webhooks' port,
    /// 15017 if none is named
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
        let secure = |text: &&String| text.starts_with("https://");
        if let Some(one) = self.control.iter().find(secure)
            && !self.is_meant()
        {
            bail!("--control {one}: only with --token-file are proxies asked by HTTPS");
        }
        let plain = self.control.iter().filter(|text| !secure(text));
        plain.map(|text| address(text.strip_prefix("http://").unwrap_or(text), 8080)).collect()
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
        self.control.iter().map(site).collect()
    }

    /// Everybody who is connected to the control planes.
    ///
    /// # Errors
    /// None of them answers, or nobody is connected.
    pub(super) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        static TOLD: Once = Once::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sites = self.sites()?;
        let (mut all, mut failed, mut hidden) = (BTreeMap::new(), Vec::new(), 0);
        for site in &sites {
            match runtime.block_on(listed(site)) {
                Ok(page) => {
                    hidden += page["hiddenNamespaces"].as_u64().unwrap_or_default();
                    for line in page["proxies"].as_array().into_iter().flatten() {
                        let Some((id, target)) = target(site, line) else { continue };
                        // It moves from one control plane to another, and may be said of both for a while.
                        let better = |known: &Target| known.closed.is_some() && target.closed.is_none();
                        if all.get(&id).is_none_or(better) {
                            all.insert(id, target);
                        }
                    }
                }
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        if failed.len() == sites.len() {
            bail!("{}", failed.join("; "));
        }
        if !failed.is_empty() || hidden > 0 {
            TOLD.call_once(|| {
                failed.iter().for_each(|why| eprintln!("weft: {why}; its proxies are left out"));
                if hidden > 0 {
                    eprintln!(
                        "weft: proxies of {hidden} namespaces are left out, for this token may not ask them"
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
        let mut all: Vec<Target> = all.into_values().collect();
        all.sort_by_cached_key(|target| (target.name.clone(), target.key()));
        Ok(all)
    }

    /// One of them, by its id or `NAME.NAMESPACE`.
    ///
    /// # Errors
    /// None of the control planes knows it.
    pub(super) fn target(&self, name: &str) -> anyhow::Result<Target> {
        let all = self.targets()?;
        let is_it = |target: &&Target| target.name == name || target.prefix == prefix(name);
        match all.iter().find(is_it) {
            Some(target) => Ok(target.clone()),
            None => {
                let known: Vec<_> = all.iter().map(|target| target.name.as_str()).collect();
                bail!("no proxy {name:?} is connected; there are {}", known.join(", "))
            }
        }
    }
}

fn prefix(id: &str) -> String {
    format!("/proxies/{}/admin", escaped(id))
}

/// The proxy of a line of a control plane's list.
fn target(site: &Site, line: &Value) -> Option<(String, Target)> {
    let (id, name) = (line["proxy"].as_str()?, line["name"].as_str()?);
    let closed = match line["asked"].as_bool() {
        Some(true) => None,
        _ => Some(line["why"].as_str().unwrap_or("it cannot be asked through the control plane").to_owned()),
    };
    let target = Target { name: name.to_owned(), site: site.clone(), prefix: prefix(id), closed };
    Some((id.to_owned(), target))
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
        assert_eq!(one.key(), "http://127.0.0.1:8080/proxies/sidecar%7E10.0.0.1%7Eweb-1.shop%7Ed/admin");
        let line = json!({"proxy": id, "name": "web-1.shop", "asked": false, "why": "it is an Envoy"});
        assert_eq!(target(&site, &line).unwrap().1.closed.as_deref(), Some("it is an Envoy"));
    }
}
