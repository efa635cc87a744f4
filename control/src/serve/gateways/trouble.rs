//! Why what a Gateway needs cannot be made, in words for who is to mend it.

use std::fmt;

use super::hindrance::Hindrance;
use crate::ingest::gateway_api::{MANAGED, Wanted};

/// What stands in the way.
#[derive(Debug)]
pub(super) enum Trouble {
    /// An object of that name is there, and does not belong to the Gateway.
    Taken {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// It belongs to an earlier Gateway of the same name, with which it goes.
        earlier: bool,
    },
    /// The API server says no, or nothing.
    Refused(kube::Error),
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        Self::Refused(error)
    }
}

impl Trouble {
    /// The same for what is not to be said twice.
    pub(super) fn mark(&self) -> String {
        match self {
            Self::Taken { kind, name, earlier } => format!("{kind} {name} {earlier}"),
            // Not its message: there may be something in it that is different each time.
            Self::Refused(kube::Error::Api(status)) => {
                let kind = status.details.as_ref().map_or("", |details| details.kind.as_str());
                format!("{} {} {kind}", status.code, status.reason)
            }
            Self::Refused(_) => String::new(),
        }
    }

    /// What the Gateway's status says of it.
    pub(super) fn hindrance(&self) -> Hindrance {
        let (reason, passes) = match self {
            Self::Taken { earlier: true, .. } => ("Pending", true),
            Self::Taken { earlier: false, .. } => ("Invalid", false),
            Self::Refused(kube::Error::Api(status)) => match status.code {
                400 | 422 => ("Invalid", false),
                403 => ("NoResources", false),
                _ => ("Pending", true),
            },
            Self::Refused(_) => ("Pending", true),
        };
        Hindrance { reason, message: self.to_string(), passes }
    }

    /// Says it in the log.
    pub(super) fn say(&self, wanted: &Wanted) {
        let gateway = format!("{}/{}", wanted.namespace, wanted.gateway);
        if let Self::Taken { earlier: true, .. } = self {
            tracing::info!(%gateway, "{self}");
        } else {
            tracing::warn!(%gateway, "{self}");
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { kind, name, earlier: true } => write!(
                out,
                "the {kind} {name} belongs to an earlier Gateway of this name: what the new one needs is made when Kubernetes' garbage \
                 collector has taken it away"
            ),
            Self::Taken { kind, name, earlier: false } => write!(
                out,
                "nothing is made for the Gateway: there is a {kind} {name} that does not belong to it. Rename the Gateway or the {kind}; or, \
                 if that is to serve the Gateway, annotate the Gateway with {MANAGED}: \"false\""
            ),
            Self::Refused(error) => {
                let advice = match error {
                    kube::Error::Api(status) if status.code == 403 => {
                        "may the control plane's service account get, create and patch Deployments, Services and ServiceAccounts \
                         there (deploy/rbac), and does a quota or a policy of the namespace stand against it?"
                    }
                    kube::Error::Api(status) if matches!(status.code, 400 | 422) => {
                        "the API server does not take an object that the Gateway asks for: change what the message names in the \
                         Gateway (its infrastructure, its listeners), or delete the object if the field is immutable"
                    }
                    kube::Error::Api(status) if status.code == 404 => "is the namespace about to go?",
                    _ => "can the API server be reached?",
                };
                write!(out, "the workloads of the Gateway cannot be made: {error}; {advice} Trying again")
            }
        }
    }
}
