//! Reads a table's text.

use super::table::{Table, Treatment};

/// Adds a text's messages to a table.
///
/// # Errors
/// The first line that is not of the form that the module's documentation shows.
pub(super) fn into(table: &mut Table, text: &str) -> Result<(), String> {
    let mut message: Option<&str> = None;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let fail = |what: &str| Err(format!("line {}: {what}: {line}", i + 1));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            if !table.add_message(line) {
                return fail("this message is listed already");
            }
            message = Some(line);
            continue;
        }
        let Some(message) = message else { return fail("a field before any message") };
        let (names, treatment) = match line.trim_start().split_at_checked(2) {
            Some(("+ ", rest)) => match (rest.split_once(" = "), rest.split_once(" -> ")) {
                (Some((names, values)), _) => (names, Treatment::Only(words(values))),
                (None, Some((names, types))) => (names, Treatment::Types(words(types))),
                (None, None) => (rest, Treatment::Honoured),
            },
            Some(("~ ", rest)) => match rest.split_once(':') {
                Some((names, why)) if !why.trim().is_empty() => {
                    (names, Treatment::Ignored(why.trim().to_owned()))
                }
                _ => return fail("an ignored field needs a reason, after a colon"),
            },
            _ => return fail("expected + or ~"),
        };
        for name in names.split_whitespace() {
            if !table.add(message, name, treatment.clone()) {
                return fail("a field is listed twice");
            }
        }
    }
    Ok(())
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_treatments_and_mistakes_are_named_by_line() {
        let mut table = Table::default();
        into(
            &mut table,
            "# c\na.B\n  + x y\n  + z = ON OFF\n  + t -> x.Y\n  ~ w: has no effect: at all\nc.D\n",
        )
        .unwrap();
        assert_eq!(table.treatment("a.B", "y"), Some(&Treatment::Honoured));
        assert_eq!(table.treatment("a.B", "z"), Some(&Treatment::Only(vec!["ON".into(), "OFF".into()])));
        assert_eq!(table.treatment("a.B", "w"), Some(&Treatment::Ignored("has no effect: at all".into())));
        assert_eq!(table.treatment("a.B", "t"), Some(&Treatment::Types(vec!["x.Y".into()])));
        assert!(table.knows("c.D") && table.treatment("c.D", "x").is_none());
        for wrong in ["  + x", "a\n  x", "a\n  ~ x", "a\n  + x x", "a\na"] {
            assert!(into(&mut Table::default(), wrong).is_err(), "{wrong}");
        }
    }
}
