//! From the Kubernetes API to a [`World`](crate::model::World): what a directory of YAML is elsewhere, an API server is here.
//!
//! `kinds` says what is watched; `watch` watches one kind each, and the definitions that bring kinds; `store` decodes and checks
//! each object as it comes, by the same code as files, and keeps the last good version of one that is wrong; `places` brings
//! pods, nodes and EndpointSlices together. `follow` gathers what changes, and makes a state of it when it has been quiet for a
//! moment. `outlook` tells what would be, were an object stored.

mod definitions;
mod follow;
mod kinds;
mod outlook;
mod places;
mod shapes;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub use definitions::{GROUPS, yaml as definitions};
pub use follow::{Following, Settings, start};
pub use kinds::{DEFINED, Kind};
pub use outlook::{Beside, Outlook};
pub use store::{Judged, Verdict, Verdicts};

/// What stands in a finding where the file would.
const SOURCE: &str = "kubernetes";
