//! Tokens and key sets for cases: `{token:NAME}` in any string stands for a token of the case's `tokens`, `{jwks:KEY,KEY}` for
//! a key set.

use std::collections::BTreeMap;

use serde_json::Value;

use super::spec::substitute;
use crate::tables::tokens::{Token, sets};

/// Puts tokens and key sets in their places.
pub fn fill(document: &mut Value) {
    let tokens = document.as_object_mut().and_then(|d| d.remove("tokens")).unwrap_or(Value::Null);
    let tokens: Option<BTreeMap<String, Token>> = serde_json::from_value(tokens).unwrap();
    let tokens: BTreeMap<_, _> = tokens.unwrap_or_default().into_iter().map(|(n, t)| (n, t.text())).collect();
    substitute(document, &|text| {
        let text = tokens
            .iter()
            .fold(text.to_owned(), |text, (name, token)| text.replace(&format!("{{token:{name}}}"), token));
        sets(text)
    });
}
