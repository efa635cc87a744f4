//! What a process writes about itself: how much, and in which form.

use clap::Args;

use crate::admin::logging::LogFormat;

/// The flags of it.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug, trace, or rules such as info,weft_proxy::xds=debug
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log_level: String,
    /// The form of it: lines for people, or an object in JSON on each
    #[arg(long, value_enum, env = "WEFT_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
