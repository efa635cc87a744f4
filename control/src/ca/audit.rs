//! The audit log: one line of JSON for each certificate that is issued or refused, and for each change to the authority. It
//! says who, what, when and why, and holds no secret.

use std::io::Write;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_events::{Event, Kind, Outcome, Severity, emit};

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
        tell(event, &fields);
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

/// The same as an event of the mesh.
fn tell(what: &str, fields: &Value) {
    let said = |name: &str| fields[name].as_str();
    let outcome = &fields["outcome"]["refused"];
    let refused = what == "certificate refused" || !outcome.is_null();
    let of_authority = !what.starts_with("certificate");
    // What an operator does is administration; what the authority does by itself and for workloads is of certificates.
    let kind = if what == "authority changed" { Kind::Admin } else { Kind::Certificate };
    emit(kind, || {
        let (outcome, severity) = match (refused, of_authority) {
            (true, _) => (Outcome::Denied, Severity::Medium),
            (false, true) => (Outcome::Ok, Severity::Medium),
            (false, false) => (Outcome::Ok, Severity::Info),
        };
        let words = match said("reason") {
            Some(reason) => format!("{what}: {reason}"),
            None => what.to_owned(),
        };
        Event::new(kind, outcome, severity, "authority", words)
            .with_some("subject", said("caller"))
            .with_some("source_address", said("address"))
            .with_some("serial", said("serial"))
            .with_some("expires", said("not_after"))
            .with_some("operation", said("command"))
            .with_some("phase", (!fields["phase"].is_null()).then(|| fields["phase"].clone()))
    });
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
    /// Why it gets none, where it is told less itself.
    pub reason: Option<String>,
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
