//! Puts fields that stand in the wrong place where they belong: in the text itself, so that comments and all else stay as written.
//!
//! Only what the reader is sure of is moved (`support` knows which field belongs where), and only if fewer errors are left after it.

use std::path::Path;

use super::diagnostic::Diagnostic;
use super::load::{list_files, load_str};
use super::support;

/// A field that was moved.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Moved {
    /// The file.
    pub file: String,
    /// The line on which it stood.
    pub line: u32,
    /// The object, as `Kind namespace/name`.
    pub object: Option<String>,
    /// Where it stood.
    pub from: String,
    /// Where it is now, without what stands before `trafficPolicy`.
    pub to: String,
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file, line, object, from, to } = self;
        write!(
            f,
            "{file}:{line}: {}{from} is {to} now",
            object.as_ref().map_or(String::new(), |o| format!("{o}: "))
        )
    }
}

/// Mends the files of a directory, or the one file that is given. A file is replaced whole or not at all.
///
/// # Errors
/// A file cannot be read or replaced; those before it are mended.
pub fn fix_dir(dir: &Path) -> std::io::Result<Vec<Moved>> {
    let mut all = Vec::new();
    for path in list_files(dir)? {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let (fixed, moved) = fix_text(&path.display().to_string(), &text);
        if !moved.is_empty() {
            replace(&std::fs::canonicalize(&path)?, &fixed)?;
            all.extend(moved);
        }
    }
    Ok(all)
}

/// Readers see the old text or the new one; the name in between begins with a dot, so that none takes it for configuration.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.fixed"));
    std::fs::write(&beside, text)?;
    std::fs::set_permissions(&beside, std::fs::metadata(path)?.permissions())?;
    std::fs::rename(&beside, path)
}

/// A text with its fields in place, and which were moved.
pub fn fix_text(file: &str, text: &str) -> (String, Vec<Moved>) {
    let errors = |text: &str| -> Vec<Diagnostic> { load_str(file, text).errors().cloned().collect() };
    let (mut text, mut moved, mut left) = (text.to_owned(), Vec::new(), errors(text));
    // Lines of the text as it is now, as they were numbered in the one that was given.
    let mut numbers: Vec<u32> = (1..).take(text.split('\n').count()).collect();
    // One at a time: each changes the lines of those that follow.
    while let Some((better, order, one, errors)) = left.iter().find_map(|error| {
        let (better, order, to) = fix(&text, error)?;
        let errors = errors(&better);
        let old = |new: &Diagnostic| left.iter().any(|l| (&l.object, &l.path) == (&new.object, &new.path));
        (errors.len() < left.len() && errors.iter().all(old)).then(|| {
            let line = numbers.get(error.line as usize - 1).copied().unwrap_or(error.line);
            let from = error.path.clone().unwrap_or_default();
            (
                better,
                order,
                Moved { file: file.to_owned(), line, object: error.object.clone(), from, to },
                errors,
            )
        })
    }) {
        numbers = order.into_iter().map(|from| from.map_or(0, |at| numbers[at])).collect();
        (text, left) = (better, errors);
        moved.push(one);
    }
    (text, moved)
}

/// A line, and which one of the text before it was.
type Line = (String, Option<usize>);

/// The text without this error, where each of its lines was before, and the field's new place.
fn fix(text: &str, error: &Diagnostic) -> Option<(String, Vec<Option<usize>>, String)> {
    let (parent, field) = error.path.as_ref()?.rsplit_once('.')?;
    let home = support::home(parent, field)?;
    // What stands in a list has no line of its own to go by.
    if parent.rsplit_once("trafficPolicy").is_some_and(|(_, below)| below.contains('[')) {
        return None;
    }
    let mut segments = home.split('.');
    let owner = if home == "trafficPolicy" { "spec" } else { segments.next()? };
    let mut lines: Vec<Line> =
        text.split('\n').enumerate().map(|(n, line)| (line.to_owned(), Some(n))).collect();
    let at = (error.line as usize).checked_sub(1)?;
    let own = indent(&lines.get(at)?.0)?;
    if !lines[at].0[own..].starts_with(&format!("{field}:")) {
        return None;
    }
    let owner = above(&lines, at, |line| line == format!("{owner}:"))?;
    // From the innermost to the owner.
    let mut parents = vec![above(&lines, at, |_| true)?];
    while let Some(parent) = above(&lines, *parents.last()?, |_| true).filter(|parent| *parent > owner) {
        parents.push(parent);
    }
    let length = 1 + lines[at + 1..].iter().take_while(|l| indent(&l.0).is_some_and(|i| i > own)).count();
    let item: Vec<Line> = lines.drain(at..at + length).collect();
    // What has nothing left in it goes as well.
    for parent in parents.into_iter().filter(|parent| *parent > owner) {
        if end(&lines, parent) > parent + 1 || !lines[parent].0.trim_end().ends_with(':') {
            break;
        }
        lines.remove(parent);
    }
    insert(&mut lines, owner, &segments.collect::<Vec<_>>(), field, item)?;
    let (text, order): (Vec<String>, Vec<Option<usize>>) = lines.into_iter().unzip();
    Some((text.join("\n"), order, format!("{home}.{field}")))
}

/// How far a line that says something is indented.
fn indent(line: &str) -> Option<usize> {
    let text = line.trim_start_matches(' ');
    (!text.trim().is_empty() && !text.starts_with('#')).then(|| line.len() - text.len())
}

/// The next line above in which this one stands and of which `wanted` is true.
fn above(lines: &[Line], at: usize, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    let mut inside = indent(&lines.get(at)?.0)?;
    for (number, (line, _)) in lines[..at].iter().enumerate().rev() {
        let Some(own) = indent(line).filter(|own| *own < inside) else { continue };
        inside = own;
        if wanted(line.trim()) {
            return Some(number);
        }
    }
    None
}

/// The line after the last that stands in this one.
fn end(lines: &[Line], at: usize) -> usize {
    let Some(own) = indent(&lines[at].0) else { return at + 1 };
    let inside = lines[at + 1..].iter().take_while(|l| indent(&l.0).is_none_or(|i| i > own));
    // Blank lines and comments at the end belong to what follows.
    let said: Vec<bool> = inside.map(|l| indent(&l.0).is_some()).collect();
    at + 1 + said.iter().rposition(|said| *said).map_or(0, |last| last + 1)
}

/// Puts a field's lines into the object at a line, or further down in it.
fn insert(lines: &mut Vec<Line>, at: usize, path: &[&str], field: &str, item: Vec<Line>) -> Option<()> {
    let (own, end) = (indent(&lines[at].0)?, end(lines, at));
    let inside = lines[at + 1..end].iter().find_map(|l| indent(&l.0)).unwrap_or(own + 2);
    let starts = |l: &Line, key: &str| {
        indent(&l.0) == Some(inside)
            && l.0[inside..].strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
    };
    let Some((next, rest)) = path.split_first() else {
        if lines[at + 1..end].iter().any(|l| starts(l, field)) {
            return None;
        }
        let was = indent(&item.first()?.0)?;
        let moved = item.into_iter().map(|(line, n)| (format!("{}{}", " ".repeat(inside), &line[was..]), n));
        lines.splice(end..end, moved);
        return Some(());
    };
    let place = match lines[at + 1..end].iter().position(|l| starts(l, next)) {
        // A value on the same line is none that lines can be put into.
        Some(place) if lines[at + 1 + place].0.trim() != format!("{next}:") => return None,
        Some(place) => at + 1 + place,
        None => {
            lines.insert(end, (format!("{}{next}:", " ".repeat(inside)), None));
            end
        }
    };
    insert(lines, place, rest, field, item)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "\
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: user-service, namespace: ecotrack}
spec:
  host: user-service
  trafficPolicy:
    connectionPool:
      http:
        maxRetries: 3 # at once
        consecutiveGatewayErrors: 5 # in a row
        interval: 30s
        tcpKeepalive:
          time: 300s
    loadBalancer:
      simple: LEAST_CONN

# What follows.
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: ecotrack}
spec:
  host: other
  trafficPolicy:
    connectionPool:
      tcp:
        maxRequestsPerConnection: 10
    outlierDetection:
        interval: 10s
";

    #[test]
    fn fields_go_where_they_belong_and_all_else_stays() {
        let (text, moved) = fix_text("dr.yaml", RULE);
        let expected = "\
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: {name: user-service, namespace: ecotrack}
spec:
  host: user-service
  trafficPolicy:
    connectionPool:
      http:
        maxRetries: 3 # at once
      tcp:
        tcpKeepalive:
          time: 300s
    loadBalancer:
      simple: LEAST_CONN
    outlierDetection:
      consecutiveGatewayErrors: 5 # in a row
      interval: 30s

# What follows.
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: other, namespace: ecotrack}
spec:
  host: other
  trafficPolicy:
    outlierDetection:
        interval: 10s
    connectionPool:
      http:
        maxRequestsPerConnection: 10
";
        assert_eq!(text, expected);
        assert_eq!(load_str("dr.yaml", &text).errors().count(), 0);
        let told: Vec<_> = moved.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "dr.yaml:10: DestinationRule ecotrack/user-service: spec.trafficPolicy.connectionPool.http.consecutiveGatewayErrors is trafficPolicy.outlierDetection.consecutiveGatewayErrors now",
                "dr.yaml:11: DestinationRule ecotrack/user-service: spec.trafficPolicy.connectionPool.http.interval is trafficPolicy.outlierDetection.interval now",
                "dr.yaml:12: DestinationRule ecotrack/user-service: spec.trafficPolicy.connectionPool.http.tcpKeepalive is trafficPolicy.connectionPool.tcp.tcpKeepalive now",
                "dr.yaml:27: DestinationRule ecotrack/other: spec.trafficPolicy.connectionPool.tcp.maxRequestsPerConnection is trafficPolicy.connectionPool.http.maxRequestsPerConnection now",
            ]
        );
        assert_eq!(fix_text("dr.yaml", &text), (text, Vec::new()));
    }

    #[test]
    fn what_is_not_certain_is_left_alone() {
        let head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: n}\nspec:\n  host: a\n";
        for spec in [
            // Said twice, and differently.
            "  trafficPolicy:\n    connectionPool:\n      http:\n        interval: 5s\n    outlierDetection:\n      interval: 10s\n",
            // On one line.
            "  trafficPolicy: {connectionPool: {http: {interval: 5s}}}\n",
            "  trafficPolicy:\n    connectionPool:\n      http:\n        interval: 5s\n    outlierDetection: {baseEjectionTime: 10s}\n",
            // Of one port.
            "  trafficPolicy:\n    portLevelSettings:\n      - port: {number: 80}\n        connectionPool:\n          http:\n            interval: 5s\n",
            // A slip of the pen.
            "  trafficPolicy:\n    outlierDetection:\n      intervall: 5s\n",
        ] {
            let text = format!("{head}{spec}");
            assert!(load_str("a.yaml", &text).errors().count() > 0, "{text}");
            assert_eq!(fix_text("a.yaml", &text), (text, Vec::new()));
        }
    }

    #[test]
    fn files_are_replaced_and_others_are_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let (bad, good) = (directory.path().join("bad.yaml"), directory.path().join("good.yaml"));
        std::fs::write(&bad, RULE).unwrap();
        std::fs::write(&good, "# nothing\n").unwrap();
        let before = std::fs::metadata(&good).unwrap().modified().unwrap();
        assert_eq!(fix_dir(directory.path()).unwrap().len(), 4);
        assert_eq!(std::fs::read_to_string(&bad).unwrap(), fix_text("x", RULE).0);
        assert_eq!(std::fs::metadata(&good).unwrap().modified().unwrap(), before);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        assert_eq!(fix_dir(&bad).unwrap(), []);
    }
}
