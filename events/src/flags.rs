//! The flags of both halves.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Where events go
#[derive(Args, Clone, Debug)]
pub struct EventArgs {
    /// Write the security event log to the end of this file, a line for each event (denials, failed handshakes, refused
    /// configuration, certificates, administration, quarantines); - is standard output. A file that is moved away is made anew
    #[arg(long, value_name = "PATH", env = "WEFT_SECURITY_LOG")]
    pub security_log: Option<PathBuf>,
    /// The form of its lines: Weft's own JSON, the Open Cybersecurity Schema Framework's, or ArcSight's Common Event Format
    #[arg(long, value_name = "FORMAT", env = "WEFT_SECURITY_LOG_FORMAT", default_value = "json")]
    pub security_log_format: Format,
    /// As many events of one kind are told in a second; the rest is counted, and the sum is an event. 0 is no limit
    #[arg(long, value_name = "N", env = "WEFT_SECURITY_LOG_RATE", default_value_t = 50)]
    pub security_log_rate: u64,
}

impl Default for EventArgs {
    fn default() -> Self {
        Self { security_log: None, security_log_format: Format::Json, security_log_rate: 50 }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Flat JSON with the names of docs/security-events.md.
    #[default]
    Json,
    /// OCSF, the Open Cybersecurity Schema Framework.
    Ocsf,
    /// CEF, the Common Event Format.
    Cef,
}
