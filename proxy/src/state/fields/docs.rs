//! Writes `docs/xds-fields.md` from the table: `WEFT_UPDATE_DOCS=1 cargo test -p weft-proxy xds_fields`.

use std::fmt::Write as _;
use std::path::Path;

use super::table::{TEXTS, Table, Treatment};
use super::{parse, table};

const INTRODUCTION: &str = "\
# Configuration fields

Every field of every message that the proxy accepts, by xDS or in a bootstrap file. A field is **honoured** (it does what
Envoy's documentation says), **ignored** (present in configurations of real control planes, and safe to leave aside, for the
reason given) or **refused**: the resource that holds it is rejected, with the field's path. What is not listed here, an
extension or a field that is newer than this proxy, is refused as well.

This file is generated from `proxy/src/state/fields/tables`: `WEFT_UPDATE_DOCS=1 cargo test -p weft-proxy xds_fields`.
";

fn render() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (area, source) in TEXTS {
        let mut part = Table::default();
        parse::into(&mut part, source).unwrap();
        let _ = write!(text, "\n## {}{}\n", area[..1].to_uppercase(), &area[1..]);
        for (name, fields) in part.messages() {
            let _ = write!(text, "\n### `{name}`\n\n");
            let kind = xds_protos::pool().get_message_by_name(name).unwrap();
            let mut honoured = Vec::new();
            let mut refused = Vec::new();
            let mut lines = String::new();
            for field in kind.fields() {
                match fields.get(field.name()) {
                    None => refused.push(format!("`{}`", field.name())),
                    Some(Treatment::Honoured) => honoured.push(format!("`{}`", field.name())),
                    Some(Treatment::Only(values)) => {
                        honoured.push(format!("`{}` ({})", field.name(), values.join(", ")));
                    }
                    Some(Treatment::Types(types)) => {
                        honoured.push(format!("`{}` (of {})", field.name(), types.join(", ")));
                    }
                    Some(Treatment::Ignored(why)) => {
                        let _ = writeln!(lines, "- Ignored: `{}`: {why}.", field.name());
                    }
                }
            }
            if kind.fields().len() == 0 {
                text += "Accepted; it has no fields.\n";
            }
            if !honoured.is_empty() {
                let _ = writeln!(text, "- Honoured: {}.", honoured.join(", "));
            }
            text += &lines;
            if !refused.is_empty() {
                let _ = writeln!(text, "- Refused: {}.", refused.join(", "));
            }
        }
    }
    text
}

#[test]
fn xds_fields_are_documented() {
    assert!(table::get().knows("envoy.config.listener.v3.Listener"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/xds-fields.md");
    let rendered = render();
    if std::env::var_os("WEFT_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, rendered).unwrap();
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == rendered,
        "docs/xds-fields.md is stale: run `WEFT_UPDATE_DOCS=1 cargo test -p weft-proxy xds_fields` and commit it"
    );
}
