//! Why a workload has no new certificate.

use std::time::Duration;

use crate::xds::{ChannelError, CredentialsError, causes};

/// Why a request for a certificate failed. All of these are tried again.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is nothing to prove who we are with.
    #[error("{0}; mount the workload's token there, or make one with weft token create")]
    Credentials(#[from] CredentialsError),
    /// The certificate authority cannot be reached.
    #[error("{}; is the control plane running there, and is the trust bundle its own?", causes(.0))]
    Channel(#[from] ChannelError),
    /// It answered with an error.
    #[error("the certificate authority at {address} refused: {code:?}: {message}")]
    Refused {
        /// Where it is.
        address: String,
        /// gRPC's status code.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// It did not answer.
    #[error("the certificate authority did not answer within {0:?}; look at its load and at the network")]
    TimedOut(Duration),
    /// It answered with something that cannot be used.
    #[error("the certificate authority's answer cannot be used: {0}")]
    Answer(String),
    /// No key or request could be made.
    #[error(transparent)]
    Request(#[from] weft_certs::csr::CsrError),
}
