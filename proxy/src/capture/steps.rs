//! What is done, to be printed: a dry run says all of it, and changes nothing.

use serde::Serialize;

use super::args::Output;
use super::routes::{Change, Route};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Step {
    /// A program and its arguments. For addresses and routes: the command that does what netlink is told.
    command: Vec<String>,
    /// What the program reads.
    #[serde(skip_serializing_if = "String::is_empty")]
    input: String,
}

impl Step {
    pub(super) fn run(program: &str, arguments: &[&str], input: String) -> Self {
        let words = std::iter::once(program).chain(arguments.iter().copied());
        Self { command: words.map(str::to_owned).collect(), input }
    }

    pub(super) fn route(route: Route) -> Self {
        let command = route.command(Change::Add).split(' ').map(str::to_owned).collect();
        Self { command, input: String::new() }
    }
}

/// Prints the steps.
pub(super) fn print(backend: &str, steps: &[Step], output: Output) -> String {
    match output {
        Output::Json => serde_json::json!({ "backend": backend, "steps": steps }).to_string() + "\n",
        Output::Text => steps
            .iter()
            .map(|step| {
                let command = step.command.join(" ");
                match step.input.as_str() {
                    "" => format!("{command}\n"),
                    input => format!("{command} <<'END'\n{input}END\n"),
                }
            })
            .collect(),
    }
}
