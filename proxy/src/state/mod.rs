//! Applies resources: walk, check, compile, warm, publish.

pub mod context;
pub mod engine;
pub mod error;
pub mod fields;
pub mod node;
pub mod saved;
pub mod seal;
pub mod slot;

pub use context::{ClusterTable, CompileContext, RouteTable, SecretSource, SecretTable, Tables};
pub use engine::{DrainScope, Dumped, Engine, Kept};
pub use error::ConfigError;
pub use node::{NodeInfo, Role};
pub use slot::{Slot, SlotState, SlotTable};
