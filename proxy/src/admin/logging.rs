//! What a process writes about itself, and the handle by which the admin interface changes how much of it.

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, reload};

use super::SetLevel;

/// Starts logging to standard error (standard output is the access log's) by these rules.
///
/// # Errors
/// Rules that cannot be read.
pub fn start(rules: &str) -> anyhow::Result<SetLevel> {
    let filter = EnvFilter::try_new(rules).with_context(|| format!("--log-level {rules}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).finish();
    // A second proxy in one process (tests) keeps the first one's log.
    let _ = tracing::subscriber::set_global_default(subscriber.with(filter));
    Ok(Box::new(move |rules| {
        if let Some(rules) = rules {
            let filter = EnvFilter::try_new(rules).map_err(|e| format!("level {rules:?}: {e}"))?;
            handle.reload(filter).map_err(|e| e.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|e| e.to_string())
    }))
}
