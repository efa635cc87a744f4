//! Why a server of EST did not do what was asked.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;

use crate::ca::http::HttpError;

/// There is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EstError {
    /// The server is not to be had.
    #[error("the EST server is not to be had: {0}; what is there stays, and this is tried again")]
    Away(#[from] HttpError),
    /// It refused.
    #[error("{url}: the EST server says {status}: {words}; {}", hint(.status))]
    Refused {
        /// What was asked.
        url: String,
        /// Its status.
        status: StatusCode,
        /// What it said.
        words: String,
    },
    /// It wants time, more than anybody waits.
    #[error(
        "{url}: the EST server wants to be asked again in {} s: if a person approves requests there, have it trust the control plane to", after.as_secs()
    )]
    Later {
        /// What was asked.
        url: String,
        /// When to ask again.
        after: Duration,
    },
    /// Its root is so new that the mesh may not have heard of it.
    #[error(
        "{url}: the EST server signs under a new root, of which the mesh is being told; certificates under it are handed out some minutes \
         after it was first in cacerts: ask again then, and have the server go on with the old root meanwhile"
    )]
    Early {
        /// What was asked.
        url: String,
    },
    /// It answered what cannot be used.
    #[error("{url}: the EST server's answer cannot be used: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The request names somebody else, and the server would believe it.
    #[error(
        "the request is for {named}, and {id} asks: a server of EST takes names from the request; have it name {id} as its one URI, and nothing besides"
    )]
    Names {
        /// What it names.
        named: String,
        /// Who asks.
        id: String,
    },
    /// A file of ours cannot be used.
    #[error("{flag} {}: {why}", path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl EstError {
    /// Whether asking again may help.
    pub fn passes(&self) -> bool {
        match self {
            Self::Away(_) | Self::Later { .. } | Self::Early { .. } | Self::File { .. } => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Answer { .. } | Self::Names { .. } => false,
        }
    }

    /// The same for whoever asked, who is not told where files of the control plane are.
    pub fn outward(&self) -> String {
        match self {
            Self::File { flag, .. } => format!(
                "a file of the control plane's ({flag}) cannot be used; its log says which and why, and this is tried again"
            ),
            Self::Away(_) => {
                "the EST server is not to be had; the control plane's log says why: what is there stays, and this is tried again".to_owned()
            }
            _ => self.to_string(),
        }
    }

    /// Whether the request is to blame.
    pub fn is_the_requests(&self) -> bool {
        matches!(self, Self::Names { .. })
    }
}

/// What to look at.
fn hint(status: &StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => "it is not followed elsewhere: have --ca-addr name where it is",
        401 | 403 => {
            "look whether it knows the control plane (--ca-est-cert, --ca-est-user), and lets it ask for others"
        }
        404 => "look at --ca-addr and --ca-est-label",
        500..=599 => "what is there stays, and this is tried again",
        _ => "look what it allows in requests: a SPIFFE id as the one name, and no subject",
    }
}
