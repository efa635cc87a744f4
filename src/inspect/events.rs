//! `weft events`: what happened lately, of the control plane and all its proxies, in the order of time.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;

use super::Output;
use super::proxies::{Asked, Proxies, Target, ask, at_once};
use super::through::not_told;
use crate::cli::parse_duration;

/// Where proxies tell their events: the admin interface.
const PORT: u16 = 15000;
/// Who is new, or gone, is looked for every so many rounds.
const LOOK: u32 = 10;

/// Shows what happened lately: denials, failed handshakes, refused configuration, certificates, administration, ejections,
/// circuit breakers, steps of versions on trial
#[derive(Args, Debug)]
pub struct EventsArgs {
    #[command(flatten)]
    proxies: Proxies,
    /// Only events of this kind: denied, handshake-failed, config-rejected, certificate, admin, quarantine, ejection, breaker,
    /// canary, suppressed. May be given several times
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(kinds()))]
    kind: Vec<String>,
    /// Only events that are no older than this
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    within: Option<Duration>,
    /// Go on with what happens, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How often it is looked for more
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    interval: Duration,
    /// How it is printed; JSON that follows is a line for each event
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn kinds() -> [&'static str; 10] {
    weft_events::Kind::ALL.map(weft_events::Kind::name)
}

/// Whom to ask, and from which event on.
struct Reader {
    controls: Vec<SocketAddr>,
    targets: Vec<Target>,
    next: HashMap<String, u64>,
}

/// Prints them.
///
/// # Errors
/// Nobody answers.
pub fn main(args: &EventsArgs) -> anyhow::Result<()> {
    if args.interval < Duration::from_millis(100) {
        bail!("--interval: 100ms is the shortest, for proxies are asked each time");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let controls = args.proxies.controls()?;
    let targets = whom(args, &controls)?;
    let mut reader = Reader { controls: controls.clone(), targets, next: HashMap::new() };
    let without = args.proxies.controls_without_pages();
    let not_told = not_told("events", &without);
    if let Some(why) = &not_told {
        eprintln!("weft: {why}");
    }
    let mut out = std::io::stdout();
    let mut round = 0_u32;
    loop {
        let (events, asked) = runtime.block_on(reader.read());
        if round == 0 && asked.answers.is_empty() {
            bail!("{}", asked.missing().unwrap_or_else(|| "nobody is there to be asked".to_owned()));
        }
        let events: Vec<Value> = events.into_iter().filter(|event| args.wants(event)).collect();
        let shown = match (args.output, args.follow) {
            (Output::Json, false) => {
                let mut page = json!({"events": events, "proxies": asked.proxies()});
                if let Some(why) = &not_told {
                    page["controlPlanes"] = json!({"leftOut": without, "why": why});
                }
                format!("{page:#}\n")
            }
            (Output::Json, true) => events.iter().map(|event| format!("{event}\n")).collect(),
            (Output::Text, _) => events.iter().map(line).collect(),
        };
        if round == 0
            && let Some(missing) = asked.missing()
        {
            eprintln!("{missing}");
        }
        match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        if !args.follow {
            return Ok(());
        }
        std::thread::sleep(args.interval);
        round += 1;
        if round.is_multiple_of(LOOK)
            && let Ok(targets) = whom(args, &controls)
        {
            reader.targets = targets;
        }
    }
}

/// The proxies; a control plane alone suffices, too.
fn whom(args: &EventsArgs, controls: &[SocketAddr]) -> anyhow::Result<Vec<Target>> {
    match args.proxies.targets_at(PORT) {
        Ok(targets) => Ok(targets),
        // Who was asked with a token is not asked without.
        Err(error) if args.proxies.are_asked_through() => Err(error),
        // It answers, and nobody is connected.
        Err(_) if controls.iter().any(|at| super::ask(*at, "/version", "").is_ok()) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl EventsArgs {
    fn wants(&self, event: &Value) -> bool {
        let kind = self.kind.is_empty() || self.kind.iter().any(|kind| event["event"] == **kind);
        let young = self.within.is_none_or(|within| OffsetDateTime::now_utc() - when(event) <= within);
        kind && young
    }
}

impl Reader {
    /// What is new, in the order of time.
    async fn read(&mut self) -> (Vec<Value>, Asked<()>) {
        let mut asked = Asked { answers: Vec::new(), targets: 0, silent: Vec::new() };
        let mut all = Vec::new();
        let control =
            self.controls.iter().map(|at| (Target::at("control plane".to_owned(), *at), "/debug/events"));
        let proxies = self.targets.iter().map(|target| (target.clone(), "/weft/events"));
        let everybody: Vec<_> = control.chain(proxies).collect();
        for some in everybody.chunks(at_once(&self.targets)) {
            let mut under_way = JoinSet::new();
            for (target, page) in some {
                let since = self.next.get(&target.key()).copied().unwrap_or_default();
                let (target, path) = (target.clone(), format!("{page}?since={since}"));
                under_way.spawn(async move {
                    (
                        since,
                        ask(std::slice::from_ref(&target), &path, |text| {
                            serde_json::from_str::<Value>(text).ok()
                        })
                        .await,
                    )
                });
            }
            while let Some(Ok((since, one))) = under_way.join_next().await {
                asked.targets += 1;
                asked.silent.extend(one.silent);
                for (target, page) in one.answers {
                    let page = page.unwrap_or_default();
                    let next = page["next"].as_u64().unwrap_or_default();
                    // One that began anew counts from the beginning; what it told before this look is asked for at the next.
                    self.next.insert(target.key(), if next < since { 0 } else { next });
                    all.extend(page["events"].as_array().cloned().unwrap_or_default());
                    asked.answers.push((target, ()));
                }
            }
        }
        asked.silent.sort();
        all.sort_by_key(when);
        (all, asked)
    }
}

/// When it happened; fractions have as many digits as they need, so the texts do not sort.
fn when(event: &Value) -> OffsetDateTime {
    let text = event["time"].as_str().unwrap_or_default();
    OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn line(event: &Value) -> String {
    let word = |name: &str| event[name].as_str().unwrap_or_default();
    let time = when(event);
    let (hour, minute, second) = time.to_hms();
    let who = match word("component") {
        "control-plane" => "control plane".to_owned(),
        _ => format!("{}/{}", word("namespace"), word("workload")),
    };
    format!(
        "{} {hour:02}:{minute:02}:{second:02}.{:03}  {:16}  {:7}  {who:32}  {}\n",
        time.date(),
        time.millisecond(),
        word("event"),
        word("outcome"),
        word("message").lines().next().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_in_the_order_of_time_whatever_their_texts_look_like() {
        let mut all = ["2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.25Z"]
            .map(|time| json!({"time": time}));
        all.sort_by_key(when);
        assert_eq!(
            all.map(|e| e["time"].as_str().unwrap().to_owned()),
            ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.25Z", "2026-01-02T03:04:05.5Z"]
        );
    }

    #[test]
    fn a_line_has_who_told_it() {
        let event = json!({
            "time": "2026-01-02T03:04:05.678Z", "event": "ejection", "outcome": "failed", "component": "proxy",
            "namespace": "shop", "workload": "front-1", "message": "10.0.0.1:80 was ejected\nmore",
        });
        let text = line(&event);
        assert!(text.starts_with("2026-01-02 03:04:05.678  ejection "), "{text}");
        assert!(text.contains("shop/front-1") && text.ends_with("10.0.0.1:80 was ejected\n"), "{text}");
    }
}
