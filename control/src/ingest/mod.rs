//! From files to a [`World`](crate::model::World): reading, checking and watching configuration.
//!
//! A directory of YAML goes through here in this order: `load` lists and reads files, `tree` parses them with line
//! numbers, `document` finds out what each object is, `decode` types it and finds unknown fields (`support` knows what Weft
//! does not honour yet, `suggest` what was meant), `normalize` brings names into full form, `validate` checks Istio's
//! rules. `cluster` takes the objects from a Kubernetes API server instead. `bundle` checks signatures of configuration, where `source` says that it must have one. `fix` puts fields that stand in the wrong place where they belong. `watch` does it again whenever a file changes, and keeps the last good state when the new one is refused.

pub mod bundle;
mod check;
pub mod cluster;
mod debounce;
mod decode;
mod diagnostic;
mod discovery;
mod document;
mod fix;
pub mod gateway_api;
mod load;
mod normalize;
mod source;
mod suggest;
mod support;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_expansion;
mod tree;
mod validate;
mod watch;

pub use check::check_object;
pub use debounce::DebounceArgs;
pub use diagnostic::{Diagnostic, Severity};
pub use document::Skipped;
pub use fix::{Moved, fix_dir, fix_text};
pub use load::{LoadOutcome, list_files, load_dir, load_str, load_texts};
pub use source::Source;
pub use watch::{Snapshot, Watcher};
