//! Reads a crate's modules as the compiler would and lists every path that leaves its module, tests excepted.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// A path in a module's code: `crate::a::B` as `[a, B]`, `hyper::body` as `[hyper, body]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// The file that holds it.
    pub file: PathBuf,
    /// The module that holds it.
    pub from: Vec<String>,
    /// What it names.
    pub to: Vec<String>,
    /// Of another crate.
    pub external: bool,
}

/// Every path of the crate whose root is this file.
pub fn imports(root: &Path) -> BTreeSet<Import> {
    let mut found = BTreeSet::new();
    let directory = root.parent().expect("a crate's root lies in a directory");
    read(root, directory, Vec::new(), &mut found);
    found
}

fn read(file: &Path, children: &Path, module: Vec<String>, found: &mut BTreeSet<Import>) {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let syntax = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut scanner = Scanner { file, children: children.to_owned(), module, local: BTreeSet::new(), found };
    scanner.local = names_bound_in(&syntax);
    scanner.visit_file(&syntax);
}

/// Names that mean something of the file's own: its modules, and what its `use` lines bind.
fn names_bound_in(file: &syn::File) -> BTreeSet<String> {
    struct Names(BTreeSet<String>);
    impl Visit<'_> for Names {
        fn visit_item_mod(&mut self, item: &syn::ItemMod) {
            self.0.insert(item.ident.to_string());
            visit::visit_item_mod(self, item);
        }
        fn visit_use_path(&mut self, path: &syn::UsePath) {
            // `use h2::X` binds X; `use crate::codec::{self, h2}` binds codec and h2.
            if let syn::UseTree::Group(group) = &*path.tree
                && group.items.iter().any(|i| matches!(i, syn::UseTree::Name(n) if n.ident == "self"))
            {
                self.0.insert(path.ident.to_string());
            }
            visit::visit_use_path(self, path);
        }
        fn visit_use_name(&mut self, name: &syn::UseName) {
            self.0.insert(name.ident.to_string());
        }
        fn visit_use_rename(&mut self, rename: &syn::UseRename) {
            self.0.insert(rename.rename.to_string());
        }
    }
    let mut names = Names(BTreeSet::new());
    names.visit_file(file);
    names.0
}

struct Scanner<'a> {
    file: &'a Path,
    children: PathBuf,
    module: Vec<String>,
    local: BTreeSet<String>,
    found: &'a mut BTreeSet<Import>,
}

impl Scanner<'_> {
    fn path(&mut self, segments: &[String], from_use: bool) {
        let mut base = self.module.clone();
        let mut rest = segments;
        let mut inside = false;
        while let Some(first) = rest.first() {
            match first.as_str() {
                "crate" => base.clear(),
                "self" => {}
                "super" => drop(base.pop()),
                _ => break,
            }
            inside = true;
            rest = &rest[1..];
        }
        let external = !inside;
        // A path of one segment is a name in scope, not the way to one; neither does a known name lead out of the crate.
        if external && !from_use && (rest.len() < 2 || self.local.contains(&rest[0])) {
            return;
        }
        let to = if external { rest.to_vec() } else { [base, rest.to_vec()].concat() };
        if !to.is_empty() {
            let (file, from) = (self.file.to_owned(), self.module.clone());
            self.found.insert(Import { file, from, to, external });
        }
    }

    fn tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => self.path(prefix, true),
            syn::UseTree::Name(name) => self.path(&with(&name.ident), true),
            syn::UseTree::Rename(rename) => self.path(&with(&rename.ident), true),
            syn::UseTree::Glob(_) => self.path(prefix, true),
            syn::UseTree::Group(group) => group.items.iter().for_each(|t| self.tree(prefix, t)),
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

impl Visit<'_> for Scanner<'_> {
    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        if is_test(&item.attrs) {
            return;
        }
        let name = item.ident.to_string();
        let below = self.children.join(&name);
        let module = [self.module.clone(), vec![name]].concat();
        if item.content.is_none() {
            let flat = below.with_extension("rs");
            let file = if flat.is_file() { flat } else { below.join("mod.rs") };
            return read(&file, &below, module, self.found);
        }
        let outer =
            (std::mem::replace(&mut self.children, below), std::mem::replace(&mut self.module, module));
        visit::visit_item_mod(self, item);
        (self.children, self.module) = outer;
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_item_fn(&mut self, item: &syn::ItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        self.path(&segments, false);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &syn::Macro) {
        // A macro's arguments are tokens, not syntax.
        let text: String = call.tokens.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        let text = text.replace(" :: ", "::");
        for start in ["crate::", "super::", "hyper::", "h2::"] {
            for (at, _) in text.match_indices(start) {
                let before = text[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                let end = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
                let path = &text[at..end.map_or(text.len(), |end| at + end)];
                let segments: Vec<String> =
                    path.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
                self.path(&segments, false);
            }
        }
        visit::visit_macro(self, call);
    }
}
