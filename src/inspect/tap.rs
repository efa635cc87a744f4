//! `weft tap`: the requests of a workload while they are served.

use std::io::Write;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;
use tokio::sync::mpsc;

use super::proxies::{Proxies, Target};
use super::{Output, PATIENCE, plain};

/// The port of proxies' admin interface.
const PORT: u16 = 15000;
/// Lines that wait to be printed.
const WAITING: usize = 1024;

/// Shows the requests and TCP connections of a workload while they are served, each when it has ended. Values of fields that may be secrets, by their
/// names (authorization, cookie, x-api-key, x-session-id and the like), are not shown, nor are queries
#[derive(Args, Debug)]
pub struct TapArgs {
    /// The workload, as NAME, NAMESPACE/NAME, or the NAME that all of its instances begin with; of proxies that are named by --proxy:
    /// all if left out
    #[arg(required_unless_present = "proxies")]
    workload: Option<String>,
    #[command(flatten)]
    proxies: Proxies,
    /// Only this method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only this status, such as 404, or this class of them, such as 5xx
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only from whose identity has this in it (as namespace/name of the mesh's identities: ns/shop/sa/web), or from this workload
    #[arg(long, value_name = "WHO")]
    from: Option<String>,
    /// Only with this header field, as NAME or NAME: VALUE; may be given several times
    #[arg(long, short = 'H', value_name = "FIELD")]
    header: Vec<String>,
    /// Only what comes to the workload, or what it sends
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// End after so many requests
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// How it is printed; JSON is a line for each request, with its fields and what was decided
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// A way through a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// To the workload.
    Inbound,
    /// From it.
    Outbound,
}

impl TapArgs {
    fn path(&self) -> String {
        let direction = self.direction.and_then(|d| d.to_possible_value()).map(|d| d.get_name().to_owned());
        let max = self.max.map(|max| max.to_string());
        let one = [
            ("method", &self.method),
            ("path", &self.path),
            ("status", &self.status),
            ("from", &self.from),
            ("direction", &direction),
            ("max", &max),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let all = one.chain(self.header.iter().map(|field| ("header", field.as_str())));
        let query: Vec<_> = all.map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        format!("/weft/tap?{}", query.join("&"))
    }

    fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let all = self.proxies.targets_at(PORT)?;
        let Some(wanted) = &self.workload else { return Ok(all) };
        let known = all.iter().map(|t| t.name.clone()).collect::<Vec<_>>().join(", ");
        let named = self.proxies.are_named();
        let found: Vec<_> = all.into_iter().filter(|t| named || is(&t.name, wanted)).collect();
        if found.is_empty() {
            bail!("no proxy of a workload {wanted:?} is connected; there are {known}");
        }
        Ok(found)
    }
}

/// For a query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Whether a proxy's name, `NAME.NAMESPACE`, is meant.
fn is(proxy: &str, wanted: &str) -> bool {
    let (name, namespace) = proxy.rsplit_once('.').unwrap_or((proxy, ""));
    let (in_namespace, wanted) = match wanted.split_once('/') {
        Some((of, wanted)) => (of == namespace, wanted),
        None => (true, wanted),
    };
    let instance = name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('-'));
    in_namespace && (name == wanted || instance || proxy == wanted)
}

/// What comes of a proxy.
enum Heard {
    Line(String, String),
    End(String, anyhow::Result<()>),
}

/// Prints requests until there were enough, or Ctrl-C.
///
/// # Errors
/// The control plane does not answer, or no proxy can be watched.
pub fn main(args: &TapArgs) -> anyhow::Result<()> {
    let (targets, path) = (args.targets()?, args.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(follow(args, targets, path))
}

async fn follow(args: &TapArgs, targets: Vec<Target>, path: String) -> anyhow::Result<()> {
    let (sender, mut heard) = mpsc::channel(WAITING);
    let mut watched = targets.len();
    for target in targets {
        let (path, sender) = (path.clone(), sender.clone());
        tokio::spawn(async move {
            let name = target.name.clone();
            let heard = |line| Heard::Line(name.clone(), line);
            let ended = match &target.closed {
                Some(why) => Err(anyhow::anyhow!("{why}")),
                None => {
                    let path = format!("{}{path}", target.prefix);
                    crate::client::lines(&target.site, &path, PATIENCE, &sender, heard).await
                }
            };
            let _ = sender.send(Heard::End(target.name, ended)).await;
        });
    }
    drop(sender);
    let mut out = std::io::stdout();
    let (mut told, most) = (0, args.max.unwrap_or(u64::MAX));
    while told < most {
        let next = tokio::select! {
            next = heard.recv() => next,
            _ = tokio::signal::ctrl_c() => break,
        };
        let (proxy, line) = match next {
            None => break,
            Some(Heard::Line(proxy, line)) => (proxy, line),
            Some(Heard::End(proxy, ended)) => {
                watched -= 1;
                match ended {
                    Err(error) if watched == 0 && told == 0 => return Err(error.context(proxy)),
                    Err(error) => eprintln!("weft: {proxy}: {error:#}"),
                    Ok(()) => {}
                }
                continue;
            }
        };
        let mut page: Value =
            serde_json::from_str(&line).with_context(|| format!("{proxy}: {}", plain(&line)))?;
        if let Some(dropped) = page["dropped"].as_u64() {
            eprintln!(
                "weft: {proxy}: {dropped} requests were more than could be shown; ask for fewer of them"
            );
            continue;
        }
        page["proxy"] = proxy.into();
        let shown = match args.output {
            Output::Json => page.to_string(),
            Output::Text => text(&page),
        };
        told += 1;
        match writeln!(out, "{shown}").and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}

fn text(page: &Value) -> String {
    let word = |key: &str| match &page[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let start = word("start");
    let time = start.split_once('T').map_or(start.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let flags = Some(word("flags")).filter(|f| f != "-").map_or_else(String::new, |f| format!(" {f}"));
    let from = page["peer"].as_str().map_or_else(|| word("remote"), str::to_owned);
    let outcome = match page["kind"] == "connection" {
        true => format!("{} B received, {} B sent", word("bytesReceived"), word("bytesSent")),
        false => word("status"),
    };
    let line = format!(
        "{:.12} {} {} {} {}{flags} {} ms from {from} id {}",
        time,
        word("proxy"),
        word("direction"),
        super::record::what(page),
        outcome,
        word("durationMs"),
        word("id"),
    );
    plain(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_is_not_printed() {
        let page = serde_json::json!({"path": "/\u{9b}2J", "authority": "a\u{7f}", "id": "\u{1b}[2J"});
        let line = text(&page);
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(line.contains("/\u{fffd}2J"), "{line:?}");
    }

    #[test]
    fn a_workload_is_named_as_people_name_it() {
        for wanted in ["order-1", "order", "shop/order", "shop/order-1", "order-1.shop"] {
            assert!(is("order-1.shop", wanted), "{wanted}");
        }
        for wanted in ["ord", "other/order", "shop", "order-2", "order-1.other"] {
            assert!(!is("order-1.shop", wanted), "{wanted}");
        }
    }
}
