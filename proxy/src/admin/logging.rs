//! What a process writes about itself, and the handle by which the admin interface changes how much of it.

use anyhow::Context;
use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, reload};

use super::SetLevel;

/// The form of what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// `timestamp`, `level`, `message`, `target` and what else was said of it.
    Json,
}

/// Starts logging to standard error (standard output is the access log's) by these rules.
///
/// # Errors
/// Rules that cannot be read.
pub fn start(rules: &str, format: LogFormat) -> anyhow::Result<SetLevel> {
    let filter = EnvFilter::try_new(rules).with_context(|| format!("--log-level {rules}"))?;
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
    Ok(match format {
        LogFormat::Text => install(subscriber.finish(), filter),
        LogFormat::Json => install(subscriber.json().flatten_event(true).finish(), filter),
    })
}

fn install<S>(subscriber: S, filter: EnvFilter) -> SetLevel
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let (filter, handle) = reload::Layer::new(filter);
    // A second proxy in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber.with(filter));
    Box::new(move |rules| {
        if let Some(rules) = rules {
            let filter = EnvFilter::try_new(rules).map_err(|e| format!("level {rules:?}: {e}"))?;
            handle.reload(filter).map_err(|e| e.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|e| e.to_string())
    })
}
