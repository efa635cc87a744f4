//! The certificate authority: CSR in, chain out.
//!
//! [`store`] keeps root, intermediate and [`ledger`] (on disk or in memory), [`authority`] signs by their rules or has
//! [`openbao`], [`csr_api`] (a signer of Kubernetes') or [`est`] sign ([`believed`] is what the last two have in common, [`roots`] whom the mesh trusts meanwhile), [`changes`] replaces them ([`rotation`] says when; [`offline`] where the key of the [`root`] is kept elsewhere), [`service`] speaks Istio's certificate API,
//! [`authenticate`] says who calls (by [`token`], [`jwks`] or [`review`]), [`bound`] whether a pod's token comes from that pod, [`used`] that
//! a token for one use is used once, [`limit`] how often, [`audit`] writes down what was
//! done, [`serving`] keeps the control plane's own certificate fresh, and [`backup`] is for the day after.

pub mod audit;
pub mod authenticate;
pub mod authority;
pub mod backup;
mod believed;
pub mod bound;
pub mod changes;
pub mod csr_api;
pub mod elsewhere;
pub mod est;
pub mod flags;
pub mod http;
pub mod jwks;
pub mod ledger;
pub mod limit;
pub mod offline;
pub mod openbao;
pub mod review;
pub mod root;
mod roots;
pub mod rotation;
pub mod service;
pub mod serving;
pub mod shared;
pub mod status;
pub mod store;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
pub mod used;

pub use audit::Audit;
pub use authenticate::{Authenticators, Identity, PeerInfo};
pub use authority::{CertificateAuthority, Limits};
pub use flags::{SignerArgs, TokenArgs};
pub use limit::RateLimit;
pub use service::CertificateService;
pub use store::{State, StoreError};
