//! What the reader says about configuration: which file and line, which field, what is wrong and what to do.

use std::fmt;

use serde::Serialize;

pub use crate::model::Severity;

/// One finding.
///
/// Its text form is `file:line: Kind namespace/name: field.path: reason; what to do`; its JSON form has these as fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Diagnostic {
    /// The file, as it was given to the reader.
    pub file: String,
    /// The line, from 1; 0 when the finding concerns the file as a whole.
    pub line: u32,
    /// How bad it is.
    pub severity: Severity,
    /// The object, as `Kind namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, as `spec.http[0].route[1].weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error about a file as a whole.
    pub fn file_error(file: &str, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            severity: Severity::Error,
            object: None,
            path: None,
            reason: reason.into(),
            help: Some(help.into()),
        }
    }

    /// Whether it refuses the configuration.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        match self.severity {
            Severity::Error => {}
            Severity::Warning => f.write_str("warning: ")?,
            Severity::Info => f.write_str("note: ")?,
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(path) = &self.path {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.reason)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// A finding within one object, before file and object are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// Dotted path of the field; empty for the object as a whole.
    pub(super) path: String,
    /// Line if known; else it is found by the path.
    pub(super) line: Option<u32>,
    pub(super) reason: String,
    pub(super) help: Option<String>,
}

/// Findings within one object, in the order of their discovery.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn error(
        &mut self,
        path: impl Into<String>,
        reason: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Severity::Error, path.into(), reason.into(), help.into());
    }

    pub(super) fn warn(
        &mut self,
        path: impl Into<String>,
        reason: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Severity::Warning, path.into(), reason.into(), help.into());
    }

    pub(super) fn note(
        &mut self,
        path: impl Into<String>,
        reason: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Severity::Info, path.into(), reason.into(), help.into());
    }

    fn push(&mut self, severity: Severity, path: String, reason: String, help: String) {
        let help = (!help.is_empty()).then_some(help);
        self.0.push(Finding { severity, path, line: None, reason, help });
    }
}
