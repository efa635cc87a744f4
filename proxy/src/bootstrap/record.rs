//! What is settled about the record of requests when a proxy starts.

use std::time::Duration;

use clap::Args;

use crate::telemetry::record::Settings;

/// Which requests are kept in memory, for `weft explain`.
#[derive(Args, Clone, Debug)]
pub struct RecordArgs {
    /// Requests that take so long are kept as slow ones, for weft explain and weft requests
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = xds_protos::duration::parse, env = "WEFT_SLOW_REQUEST")]
    pub slow_request: Duration,
    /// The share of good requests that is kept, 0 to 1. All proxies keep those of the same ids
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share, env = "WEFT_REQUEST_SAMPLE")]
    pub request_sample: f64,
    /// The most memory for requests that are kept, in KiB; 0: none are
    #[arg(long, value_name = "KIB", default_value_t = 2048, env = "WEFT_REQUEST_RECORD_KIB")]
    pub request_record_kib: usize,
    /// Header fields whose values weft tap does not show, beside those that usually hold secrets; may be given several times
    #[arg(long = "redact", value_name = "FIELD", env = "WEFT_REDACT", value_delimiter = ',')]
    pub redact: Vec<http::HeaderName>,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share is from 0 to 1".to_owned()) }
}

impl RecordArgs {
    /// For so many workers.
    pub fn settings(&self, workers: usize) -> Settings {
        Settings {
            slow: self.slow_request,
            sample: self.request_sample,
            bytes: self.request_record_kib << 10,
            workers,
        }
    }
}
