//! What happens in a mesh and somebody should know: who was denied, whose handshake failed, what configuration was refused, which
//! host was ejected. Both halves tell it here, in one form.
//!
//! [`emit`] is called where it happens, on any thread: it never waits and touches no file. [`Kind`] and [`Event`] are the model,
//! `bound` lets no kind flood the others, `log` is the queue with the thread that writes, `ring` keeps what was last for those who
//! ask (`weft events`), `file` is the security event log's destination, and [`ocsf`] and [`cef`] its other forms. No runtime is needed, and none of our
//! other crates. Before [`start`] nothing is kept: a command that only borrows a half's code tells nobody.
#![forbid(unsafe_code)]

mod bound;
pub mod cef;
mod event;
mod file;
mod flags;
mod kind;
mod log;
pub mod ocsf;
mod ring;

pub use event::{Event, Outcome, Severity};
pub use flags::{EventArgs, Format};
pub use kind::Kind;
pub use log::{Numbers, Origin, emit, flush, numbers, since, start};
