//! The certificate authority: CSR in, chain out.
//!
//! [`store`] keeps root and intermediate (on disk or in memory), [`authority`] signs by their rules, [`service`] speaks
//! Istio's certificate API, [`authenticate`] says who calls, [`token`] makes and checks the tokens of the directory mode,
//! [`serving`] keeps the control plane's own certificate fresh.

pub mod authenticate;
pub mod authority;
pub mod service;
pub mod serving;
pub mod store;
pub mod token;

pub use authenticate::{Authenticators, Identity, PeerInfo};
pub use authority::{CertificateAuthority, Limits};
pub use service::CertificateService;
pub use store::{State, StoreError};
