//! Reads a directory of YAML into a World, or says why not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::diagnostic::{Diagnostic, Severity};
use super::document::{Collector, Skipped};
use super::tree;
use crate::model::World;

/// Directories below the given one are read down to this depth.
const MAX_DEPTH: usize = 16;

/// What came of reading a configuration.
#[derive(Clone, Debug)]
pub struct LoadOutcome {
    /// The state of the mesh; `None` if anything was refused.
    pub world: Option<World>,
    /// Errors, warnings and notes, by file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// Objects left out because they are none of the mesh's business.
    pub skipped: Vec<Skipped>,
}

impl LoadOutcome {
    /// The World, or the diagnostics that refuse it.
    ///
    /// # Errors
    /// All diagnostics, if at least one is an error.
    pub fn into_result(self) -> Result<World, Vec<Diagnostic>> {
        self.world.ok_or(self.diagnostics)
    }

    /// The diagnostics that refuse the configuration.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.is_error())
    }
}

/// Reads every `*.yaml`, `*.yml` and `*.json` of a directory and of those below it, in the order of their names.
///
/// Hidden files and directories (a leading dot) are left out. Nothing is applied in part: one error and there is no World.
pub fn load_dir(dir: &Path) -> LoadOutcome {
    let mut collector = Collector::default();
    match list_files(dir) {
        Err(error) => collector.diagnostics.push(Diagnostic::file_error(
            &dir.display().to_string(),
            format!("cannot be read: {error}"),
            "give a directory that exists and that this user may read",
        )),
        Ok(files) => {
            if files.is_empty() {
                collector.diagnostics.push(Diagnostic {
                    severity: Severity::Warning,
                    ..Diagnostic::file_error(
                        &dir.display().to_string(),
                        "holds no *.yaml, *.yml or *.json",
                        "the mesh is empty until one is there",
                    )
                });
            }
            for path in files {
                let label = path.display().to_string();
                match std::fs::read(&path) {
                    Ok(bytes) => match String::from_utf8(bytes) {
                        Ok(text) => take_text(&mut collector, &label, &text),
                        Err(_) => {
                            let help = "save the file as UTF-8";
                            collector.diagnostics.push(Diagnostic::file_error(
                                &label,
                                "is not UTF-8 text",
                                help,
                            ));
                        }
                    },
                    // Editors replace files: one that went between listing and reading is simply gone.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => collector.diagnostics.push(Diagnostic::file_error(
                        &label,
                        format!("cannot be read: {error}"),
                        "let this user read it, or move it out of the directory",
                    )),
                }
            }
        }
    }
    finish(collector)
}

/// Reads one text as if it were the file `label`.
pub fn load_str(label: &str, text: &str) -> LoadOutcome {
    let mut collector = Collector::default();
    take_text(&mut collector, label, text);
    finish(collector)
}

/// Reads texts as if they were the files of these names.
pub fn load_texts(files: &[(String, String)]) -> LoadOutcome {
    let mut collector = Collector::default();
    for (label, text) in files {
        take_text(&mut collector, label, text);
    }
    finish(collector)
}

fn take_text(collector: &mut Collector, label: &str, text: &str) {
    let file: Arc<str> = label.into();
    match tree::parse(text) {
        Ok(documents) => documents.iter().for_each(|node| collector.take(&file, node)),
        Err(error) => collector.diagnostics.push(Diagnostic {
            line: error.line,
            ..Diagnostic::file_error(
                label,
                format!("not valid YAML: {}", error.reason),
                "mend the text around that line; the file is refused as a whole",
            )
        }),
    }
}

fn finish(collector: Collector) -> LoadOutcome {
    let Collector { mut objects, mut diagnostics, mut skipped, .. } = collector;
    super::discovery::narrow(&mut objects, &mut diagnostics);
    super::gateway_api::convert(&mut objects, &mut diagnostics);
    super::validate::across(&objects, &mut diagnostics);
    let world = (!diagnostics.iter().any(Diagnostic::is_error)).then(|| World::new(objects));
    diagnostics.extend(world.iter().flat_map(super::validate::whole));
    diagnostics.sort();
    diagnostics.dedup();
    skipped.sort();
    LoadOutcome { world, diagnostics, skipped }
}

/// The configuration files below a directory, sorted. A file stands for itself.
///
/// # Errors
/// It, or one below it, cannot be read.
pub fn list_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    if dir.is_file() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut files = Vec::new();
    visit(dir, 0, &mut files)?;
    files.sort();
    Ok(files)
}

fn visit(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().first() == Some(&b'.') {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if depth < MAX_DEPTH {
                visit(&path, depth + 1, files)?;
            }
        } else if path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
        {
            files.push(path);
        }
    }
    Ok(())
}
