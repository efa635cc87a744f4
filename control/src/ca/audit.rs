//! The audit log: one line of JSON for each certificate that is issued or refused, and for each change to the authority. It
//! says who, what, when and why, and holds no secret.

use std::io::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where the lines go.
pub struct Audit {
    file: Option<(PathBuf, Mutex<std::fs::File>)>,
}

impl Audit {
    /// To the end of a file that only its owner can read; without one to standard error.
    pub fn open(path: Option<&Path>) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = match path {
            Some(path) => {
                let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
                Some((path.to_owned(), Mutex::new(file)))
            }
            None => None,
        };
        Ok(Self { file })
    }

    /// Writes a line: the `fields` of `event`, with the time.
    pub fn write(&self, event: &str, mut fields: Value) {
        fields["audit"] = event.into();
        fields["time"] = text(OffsetDateTime::now_utc()).into();
        let line = format!("{fields}\n");
        let Some((path, file)) = &self.file else {
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
            return;
        };
        // In one write, so that lines stay whole.
        if let Err(error) = file.lock().write_all(line.as_bytes()) {
            tracing::error!(path = %path.display(), %error, line, "the audit log cannot be written");
        }
    }

    /// A certificate was issued.
    pub fn issued(&self, caller: &Caller, serial: &str, not_after: OffsetDateTime) {
        let mut fields = caller.fields();
        fields["serial"] = serial.into();
        fields["not_after"] = text(not_after).into();
        self.write("certificate issued", fields);
    }

    /// A request for one was refused.
    pub fn refused(&self, caller: &Caller, reason: &str) {
        let mut fields = caller.fields();
        fields["reason"] = reason.into();
        self.write("certificate refused", fields);
    }
}

/// Who asks for a certificate.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Its proven identity; none if it proved none.
    pub identity: Option<String>,
    /// By which authenticator.
    pub by: Option<&'static str>,
    /// Where it calls from.
    pub address: Option<String>,
    /// The life it asks for, in seconds; 0 leaves it to us.
    pub lifetime: i64,
}

impl Caller {
    fn fields(&self) -> Value {
        json!({
            "caller": self.identity,
            "authenticated_by": self.by,
            "address": self.address,
            "requested_seconds": self.lifetime,
        })
    }
}

fn text(moment: OffsetDateTime) -> String {
    moment.format(&Rfc3339).unwrap_or_default()
}
