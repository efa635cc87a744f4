//! A request of the past: what each proxy that it passed has kept of it, put together in its order. Nothing is decided here again.

mod join;
mod sources;
mod text;

use anyhow::bail;
use serde_json::{Value, json};
use weft_control::model::World;

use crate::inspect::{Proxies, Record, Seen};

pub use join::Hop;
pub(crate) use sources::Sources;

/// A request, as its proxies have kept it.
pub struct Told<'a> {
    /// The id that was asked for.
    id: String,
    /// Its hops, each with those that followed from it; several at the top where what connects them was not kept.
    hops: Vec<Hop>,
    sources: Sources<'a>,
    record: Record,
}

/// What is known of a request with this id, or of the last that failed. `world`: where its objects may be written.
///
/// # Errors
/// No proxy answers, or none has kept it.
pub fn told<'a>(proxies: &Proxies, id: Option<&str>, world: Option<&'a World>) -> anyhow::Result<Told<'a>> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => last_failed(proxies)?,
    };
    let record = Record::ask(proxies, &format!("id={}&limit=1000", escaped(&id)))?;
    if record.seen.is_empty() {
        let missing = record.missing().map_or_else(String::new, |missing| format!(". {missing}"));
        bail!("no proxy has kept a request {id:?}: {}{missing}", record.holds());
    }
    let mut record = record;
    follow(proxies, &mut record)?;
    let hops = join::tree(&record.seen);
    Ok(Told { id, hops, sources: Sources { world }, record })
}

/// As many proxies a connection passes at most.
const MOST_HOPS: usize = 16;

/// A connection has no id that goes with its bytes: the other proxies know it by the address from which one reached the next.
fn follow(proxies: &Proxies, record: &mut Record) -> anyhow::Result<()> {
    let ends = |seen: &[Seen]| -> Vec<String> {
        let connections = seen.iter().filter(|one| one.request["kind"] == "connection");
        let both = connections.flat_map(|one| [&one.request["upstreamLocal"], &one.request["remote"]]);
        both.filter_map(|end| end.as_str().map(str::to_owned)).collect()
    };
    let mut asked: Vec<String> = Vec::new();
    while let Some(end) = ends(&record.seen).into_iter().find(|end| !asked.contains(end)) {
        if asked.len() >= 2 * MOST_HOPS || record.seen.len() >= MOST_HOPS {
            break;
        }
        let more = Record::ask(proxies, &format!("kind=connection&end={}&limit=10", escaped(&end)))?;
        // The same address may have served another connection before.
        let near = |one: &Seen| record.seen.iter().any(|known| join::overlap(known, one));
        let known = |one: &Seen| {
            record.seen.iter().any(|own| own.proxy == one.proxy && own.request["id"] == one.request["id"])
        };
        let new: Vec<_> = more.seen.into_iter().filter(|one| !known(one) && near(one)).collect();
        record.seen.extend(new);
        asked.push(end);
    }
    Ok(())
}

fn last_failed(proxies: &Proxies) -> anyhow::Result<String> {
    let record = Record::ask(proxies, "class=failed&limit=10")?;
    let mut failed: Vec<_> = record.seen.iter().filter(|one| one.request["id"].is_string()).collect();
    failed.sort_by_key(|one| one.request["start"].as_str().map(str::to_owned));
    match failed.last().and_then(|one| one.request["id"].as_str()) {
        Some(id) => Ok(id.to_owned()),
        None => bail!("no proxy has kept a request that failed: {}", record.holds()),
    }
}

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Told<'_> {
    /// Whether the first who sent it got what it asked for.
    pub fn arrived(&self) -> bool {
        let good = |hop: &Hop| {
            if hop.seen.request["kind"] == "connection" {
                let class = &hop.seen.request["class"];
                return class != "failed" && class != "refused";
            }
            let status = hop.seen.request["status"].as_u64().unwrap_or(0);
            (100..400).contains(&status) && hop.seen.request["grpcStatus"].as_u64().unwrap_or(0) == 0
        };
        self.hops.iter().all(good)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        fn page(hop: &Hop, sources: &Sources<'_>) -> Value {
            let mut shown = hop.seen.request.clone();
            shown["proxy"] = hop.seen.proxy.clone().into();
            sources.complete(&mut shown);
            if !hop.below.is_empty() {
                shown["hops"] = hop.below.iter().map(|below| page(below, sources)).collect();
            }
            shown
        }
        let hops: Vec<_> = self.hops.iter().map(|one| page(one, &self.sources)).collect();
        json!({"id": self.id, "hops": hops, "proxies": self.record.proxies()})
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = text::text(&self.id, &self.hops, &self.sources);
        if let Some(missing) = self.record.missing() {
            out.push_str(&format!("{missing}\n"));
        }
        out
    }
}
