//! What proxies have kept of requests: `weft requests` lists it, and `weft explain REQUEST_ID` puts the parts of one request
//! together.

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::proxies::{Asked, Proxies, ask};
use super::{Output, rows};

/// The port of proxies' admin interface.
const PORT: u16 = 15000;

/// A request as one proxy saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The proxy.
    pub proxy: String,
    /// What it kept.
    pub request: Value,
}

/// What proxies answered.
pub struct Record {
    /// The requests.
    pub seen: Vec<Seen>,
    asked: Asked<Value>,
}

impl Record {
    /// Asks for requests, by a query of the proxies' page.
    ///
    /// # Errors
    /// The control plane does not answer, or no proxy does.
    pub fn ask(proxies: &Proxies, query: &str) -> anyhow::Result<Self> {
        let targets = proxies.targets_at(PORT)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = format!("/weft/requests?{query}");
        let read = |text: &str| serde_json::from_str(text).unwrap_or_default();
        let asked = runtime.block_on(ask(&targets, &path, read));
        if asked.answers.is_empty() {
            let why = asked.missing().unwrap_or_default();
            if proxies.are_asked_through() {
                bail!("{why}");
            }
            bail!(
                "{why}; requests are kept at proxies' admin interface, port {PORT}, which in a cluster is open in the pod alone: ask \
                 through the control plane (--token-file), or kubectl port-forward POD 15000, and --proxy 127.0.0.1"
            );
        }
        let of = |(target, page): &(super::proxies::Target, Value)| {
            let all = page["requests"].as_array().cloned().unwrap_or_default();
            // Who was named by an address has a better name.
            let node = page["node"].as_str().and_then(|node| node.split('~').nth(2));
            let proxy = node.filter(|node| !node.is_empty()).unwrap_or(&target.name).to_owned();
            all.into_iter().map(move |request| Seen { proxy: proxy.clone(), request })
        };
        let seen = asked.answers.iter().flat_map(of).collect();
        Ok(Self { seen, asked })
    }

    /// Who was silent, for people.
    pub fn missing(&self) -> Option<String> {
        self.asked.missing()
    }

    /// Who was asked, for programs.
    pub fn proxies(&self) -> Value {
        self.asked.proxies()
    }

    /// What the proxies keep, and how more of it is had, in words.
    pub fn holds(&self) -> String {
        let records = || self.asked.answers.iter().map(|(_, page)| &page["record"]);
        let kept = |class: &str| -> u64 {
            records().filter_map(|record| record["classes"][class]["kept"].as_u64()).sum()
        };
        let oldest = records()
            .flat_map(|record| ["failed", "refused", "slow"].map(|class| &record["classes"][class]["oldest"]))
            .filter_map(Value::as_str)
            .min()
            .unwrap_or("now");
        let first = records().next().cloned().unwrap_or_default();
        format!(
            "{} proxies keep {} failed, {} refused, {} slow and {} good requests, the oldest of {oldest}. Kept are: what failed or \
             was refused, what took longer than {} ms, and {} % of the rest; more with the flags --slow-request, --request-sample \
             and --request-record-kib of the proxies (or WEFT_SLOW_REQUEST, WEFT_REQUEST_SAMPLE and WEFT_REQUEST_RECORD_KIB in \
             their environment)",
            self.asked.answers.len(),
            kept("failed"),
            kept("refused"),
            kept("slow"),
            kept("good"),
            first["slowMs"],
            first["sample"].as_f64().unwrap_or(0.0) * 100.0,
        )
    }
}

/// Lists the requests and TCP connections that proxies keep: the last that failed, were refused or slow, and a sample of the others
#[derive(Args, Debug)]
pub struct RequestsArgs {
    #[command(flatten)]
    proxies: Proxies,
    /// Only these
    #[arg(long, value_enum)]
    class: Option<Class>,
    /// Only requests, or only connections
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// So many of each proxy, the newest
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Why a request is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Class {
    /// 5xx, no answer, or one that broke off.
    Failed,
    /// 4xx.
    Refused,
    /// Slow, or tried more than once.
    Slow,
    /// One of the sample.
    Good,
}

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Requests of HTTP.
    Request,
    /// Connections of bytes, and those that were not let in.
    Connection,
}

/// Prints them.
///
/// # Errors
/// The control plane does not answer, or no proxy does.
pub fn main(args: &RequestsArgs) -> anyhow::Result<()> {
    let class = args.class.and_then(|class| class.to_possible_value());
    let class = class.map_or_else(String::new, |class| format!("&class={}", class.get_name()));
    let kind = args.kind.and_then(|kind| kind.to_possible_value());
    let kind = kind.map_or_else(String::new, |kind| format!("&kind={}", kind.get_name()));
    let mut record = Record::ask(&args.proxies, &format!("limit={}{class}{kind}", args.limit))?;
    record.seen.sort_by_key(|one| std::cmp::Reverse(text(&one.request, "start")));
    match args.output {
        Output::Json => {
            let seen = record.seen.iter().map(|one| json!({"proxy": one.proxy, "request": one.request}));
            println!("{:#}", json!({"requests": seen.collect::<Vec<_>>(), "proxies": record.proxies()}));
        }
        Output::Text => {
            let lines: Vec<_> = record.seen.iter().map(row).collect();
            let head = ["TIME", "PROXY", "CLASS", "REQUEST", "STATUS", "FLAGS", "TIME TAKEN", "ID"];
            print!("{}", rows::table(&head, &lines));
            if lines.is_empty() {
                println!("{}", record.holds());
            }
            if let Some(missing) = record.missing() {
                println!("{missing}");
            }
        }
    }
    Ok(())
}

fn text(request: &Value, key: &str) -> String {
    match &request[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// What a request asks for, or what a connection is for.
pub fn what(request: &Value) -> String {
    let of = |key| text(request, key);
    if request["kind"] != "connection" {
        return format!("{} {}{}", of("method"), of("authority"), of("path"));
    }
    let name = request["serverName"].as_str().map_or_else(String::new, |name| format!(" ({name})"));
    let to = request["cluster"].as_str().map_or_else(String::new, |cluster| format!(" for {cluster}"));
    format!("connection to {}{name}{to}", of("local"))
}

fn row(seen: &Seen) -> Vec<String> {
    let of = |key| text(&seen.request, key);
    let time = of("start");
    vec![
        time.split('.').next().unwrap_or(&time).trim_end_matches('Z').replace('T', " "),
        seen.proxy.clone(),
        of("class"),
        what(&seen.request),
        of("status"),
        of("flags"),
        format!("{} ms", of("durationMs")),
        of("id"),
    ]
}
