//! Finds a test by its path in the source tree, as the compiler would.

use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// Where each crate's, or test binary's, modules begin.
const ROOTS: [(&str, &str); 8] = [
    ("weft", "src/lib.rs"),
    ("weft_proxy", "proxy/src/lib.rs"),
    ("weft_control", "control/src/lib.rs"),
    ("weft_certs", "certs/src/lib.rs"),
    ("weft_events", "events/src/lib.rs"),
    ("xds_protos", "xds-protos/src/lib.rs"),
    ("e2e", "tests/e2e/main.rs"),
    ("peers", "tests/peers/main.rs"),
];

/// Why there is no test of this path, if there is none.
///
/// # Errors
/// What is missing of it.
pub fn test(house: &Path, path: &str) -> Result<(), String> {
    let mut segments: Vec<&str> = path.split("::").collect();
    let name = segments.pop().unwrap_or_default();
    let Some((krate, modules)) = segments.split_first() else {
        return Err("a path has a crate, modules and a test".to_owned());
    };
    let Some((_, root)) = ROOTS.iter().find(|(name, _)| name == krate) else {
        return Err(format!("there is no crate {krate}"));
    };
    let root = house.join(root);
    let mut items = parse(&root)?.items;
    let mut below = root.parent().map(Path::to_path_buf).unwrap_or_default();
    for module in modules {
        let found = items.into_iter().find_map(|item| match item {
            syn::Item::Mod(item) if item.ident == module => Some(item),
            _ => None,
        });
        let Some(found) = found else { return Err(format!("there is no module {module}")) };
        below.push(module);
        items = match found.content {
            Some((_, items)) => items,
            None => {
                let flat = below.with_extension("rs");
                parse(&if flat.is_file() { flat } else { below.join("mod.rs") })?.items
            }
        };
    }
    let found = items.iter().any(|item| match item {
        syn::Item::Fn(item) => item.sig.ident == name && is_test(&item.attrs),
        syn::Item::Macro(call) => {
            lists(&call.mac, name)
                && call.mac.path.get_ident().is_some_and(|m| tests_of(&root).contains(&m.to_string()))
        }
        _ => false,
    });
    if found { Ok(()) } else { Err(format!("there is no test {name}")) }
}

fn parse(file: &Path) -> Result<syn::File, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    syn::parse_file(&text).map_err(|e| format!("{}: {e}", file.display()))
}

/// `#[test]`, `#[tokio::test]`.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| a.path().segments.last().is_some_and(|s| s.ident == "test"))
}

/// The macros of a crate that make tests.
fn tests_of(root: &Path) -> Vec<String> {
    struct Macros(Vec<String>);
    impl Visit<'_> for Macros {
        fn visit_item_macro(&mut self, item: &syn::ItemMacro) {
            let tokens: String = item.mac.tokens.to_string().split_whitespace().collect();
            if let Some(name) = item.ident.as_ref().filter(|_| tokens.contains("#[test]")) {
                self.0.push(name.to_string());
            }
            visit::visit_item_macro(self, item);
        }
    }
    let mut macros = Macros(Vec::new());
    for file in files(root.parent().unwrap_or(root)) {
        let defines = std::fs::read_to_string(&file).is_ok_and(|text| text.contains("macro_rules!"));
        if let (true, Ok(file)) = (defines, parse(&file)) {
            macros.visit_file(&file);
        }
    }
    macros.0
}

/// Rust's sources below a directory.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// Whether a call of such a macro has an entry `name: ...` or `name => ...`, or is a list of names with this one in it.
fn lists(call: &syn::Macro, name: &str) -> bool {
    let tokens: Vec<String> = call.tokens.clone().into_iter().map(|token| token.to_string()).collect();
    let is_name = |token: &String| token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    tokens.windows(2).any(|pair| pair[0] == name && matches!(pair[1].as_str(), ":" | "="))
        || (tokens.iter().all(is_name) && tokens.iter().any(|token| token == name))
}
