//! Runs a case through both proxies and compares.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::case::{Case, Client, Step, Upstream};
use super::client::End;
use super::normalize::{Message, render};
use super::pair::{Pair, Side, pair, port};
use super::{cases, client, explained, h2, upstream};
use crate::programs::post;

/// What the two ends of a case tell each other, so that nothing depends on time.
#[derive(Debug, Default)]
pub struct Flags {
    raised: Mutex<HashSet<&'static str>>,
    changed: Condvar,
}

impl Flags {
    /// Raises a flag.
    pub fn raise(&self, flag: &'static str) {
        self.raised.lock().unwrap().insert(flag);
        self.changed.notify_all();
    }

    /// Waits for one. False if it does not come.
    pub fn wait(&self, flag: &str, patience: Duration) -> bool {
        let raised = self.raised.lock().unwrap();
        let (raised, _) = self.changed.wait_timeout_while(raised, patience, |r| !r.contains(flag)).unwrap();
        raised.contains(flag)
    }
}

/// What was seen of a case on one side, as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) client: String,
    pub(super) upstream: String,
}

/// Runs the case of this name through both and compares.
pub fn run(name: &str) {
    let case = cases::all().into_iter().find(|c| c.name == name).expect("the list of all cases has it");
    let pair = pair();
    let began = SystemTime::now();
    let (envoy, weft) = std::thread::scope(|scope| {
        let envoy = scope.spawn(|| observe(&case, Side::Envoy));
        let weft = scope.spawn(|| observe(&case, Side::Weft));
        (envoy.join().expect("Envoy's side panicked"), weft.join().expect("our side panicked"))
    });
    if std::env::var_os("WEFT_SHOW").is_some() {
        println!("Envoy's client saw:\n{}\nEnvoy's upstream saw:\n{}", envoy.client, envoy.upstream);
    }
    if let Err(why) = explained::check(case.name, began, &weft) {
        panic!("{why}");
    }
    match (case.deliberate, envoy == weft) {
        (None, true) => logged(&case, &pair, began),
        (None, false) => {
            let mut text = format!("{name}: Envoy's answer and ours differ (- Envoy, + ours)\n");
            for (what, a, b) in [
                ("what the client got", &envoy.client, &weft.client),
                ("what the upstream saw", &envoy.upstream, &weft.upstream),
            ] {
                if a != b {
                    let _ = write!(text, "{what}:\n{}", diff(a, b));
                }
            }
            panic!("{text}");
        }
        (Some((_, ours)), false) => assert!(
            weft.client.contains(ours) || weft.upstream.contains(ours),
            "{name}: {ours:?} is not in what our side saw:\n{}\n{}",
            weft.client,
            weft.upstream
        ),
        (Some((difference, _)), true) => {
            panic!("{name}: no difference any more; it is said to be {difference}")
        }
    }
}

/// How long lines may take to be written.
const PATIENCE: Duration = Duration::from_secs(5);

/// Compares the lines of a case in the access logs of both.
fn logged(case: &Case, pair: &Pair, since: SystemTime) {
    let name = case.name;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // What is buffered is written before the file is opened anew.
        let _ = post(Side::Weft.admin(), "/reopen_logs");
        let log = |side: Side| {
            let lines = pair.log(side, name);
            if !case.connects_by_chance {
                return lines;
            }
            let any = |line: String| {
                line.replace(&format!(" {name} - "), &format!(" {name} 127.0.0.1:<port> "))
                    .replace("upstream_local_address=null", "upstream_local_address=\"127.0.0.1:<port>\"")
            };
            lines.into_iter().map(any).collect()
        };
        let (envoy, weft) = (log(Side::Envoy), log(Side::Weft));
        let whole = weft.len() >= explained::kept(name, since).len();
        let text = |lines: &[String]| lines.join("\n\n") + "\n";
        let as_wanted = match case.logged {
            None => envoy == weft,
            // Envoy's side is there before ours.
            Some((_, ours)) => {
                envoy != weft && text(&weft).contains(ours) && (weft.is_empty() || !envoy.is_empty())
            }
        };
        if whole && as_wanted {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{name}: Envoy's access log and ours differ (- Envoy, + ours)\n{}",
            diff(&text(&envoy), &text(&weft))
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn observe(case: &Case, side: Side) -> Observed {
    let flags = Arc::new(Flags::default());
    let port = port(case.name);
    let (at, from) = (SocketAddr::new(side.address(), port), SocketAddr::new(side.upstream_address(), port));
    let listen =
        || TcpListener::bind(from).unwrap_or_else(|e| panic!("the upstream cannot listen at {from}: {e}"));
    enum Running {
        Raw(upstream::Upstream),
        H2(h2::Upstream),
        None,
    }
    let running = match &case.upstream {
        Upstream::Raw(scripts) => {
            Running::Raw(upstream::Upstream::start(listen(), scripts.clone(), flags.clone()))
        }
        Upstream::H2(answers) => Running::H2(h2::Upstream::start(listen(), answers.clone())),
        Upstream::Refusing => Running::None,
    };
    let client = match &case.client {
        Client::Raw(steps) => {
            let seen = client::play(at, steps, &flags);
            let kinds: Vec<_> = steps
                .iter()
                .filter_map(
                    |s| if let Step::Answer(method) = s { Some(Message::Response(method)) } else { None },
                )
                .collect();
            let mut text = render(&seen.received, &kinds, false);
            ending("the proxy", Some(seen.end), seen.missed, &mut text);
            text
        }
        Client::H2(requests) => h2::client(at, requests),
    };
    let upstream = match running {
        Running::Raw(upstream) => {
            let mut text = String::new();
            // A connection that was opened for a request which then broke off may or may not get as far as the upstream.
            let seen = upstream.finish();
            let seen = seen.into_iter().filter(|s| !s.received.is_empty() || s.end != Some(End::Closed));
            for (number, seen) in seen.enumerate() {
                let _ = writeln!(text, "connection {number}:");
                text += &render(&seen.received, &[Message::Request], true);
                ending("the proxy", seen.end, seen.missed, &mut text);
            }
            text
        }
        Running::H2(upstream) => upstream.finish(),
        Running::None => String::new(),
    };
    Observed { client, upstream }
}

fn ending(who: &str, end: Option<End>, missed: Option<String>, out: &mut String) {
    match end {
        Some(End::Open) => out.push_str("(the connection stayed open)\n"),
        Some(End::Closed) => _ = writeln!(out, "({who} closed the connection)"),
        Some(End::Reset) => _ = writeln!(out, "({who} reset the connection)"),
        None => {}
    }
    if let Some(missed) = missed {
        let _ = writeln!(out, "(waited in vain: {missed})");
    }
}

/// Equal lines that are shown around a difference.
const CONTEXT: usize = 8;

/// The lines of both, those that only one has marked.
pub fn diff(a: &str, b: &str) -> String {
    let (a, b): (Vec<_>, Vec<_>) = (a.lines().collect(), b.lines().collect());
    // The longest common subsequence, from the end.
    let mut longest = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] = if a[i] == b[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let near = |at: usize| {
        lines[at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(lines.len())]
            .iter()
            .any(|(mark, _)| *mark != ' ')
    };
    let mut out = String::new();
    for (at, (mark, line)) in lines.iter().enumerate() {
        if near(at) {
            let _ = writeln!(out, "  {mark} {line}");
        } else if at == 0 || near(at - 1) {
            out.push_str("    ...\n");
        }
    }
    out
}
