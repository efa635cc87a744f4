//! `/weft/events`: what happened lately.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use weft_events::Kind;

/// The last events: `?since=NUMBER` those from that number on (an answer says which comes next), `?kind=KIND` only of that kind.
pub(super) fn page(parameters: &BTreeMap<String, String>) -> Result<Value, String> {
    let since = match parameters.get("since").map(|text| text.parse::<u64>()) {
        None => 0,
        Some(Ok(number)) => number,
        Some(Err(_)) => return Err("since is the number of an event".to_owned()),
    };
    let (mut events, next) = weft_events::since(since);
    if let Some(kind) = parameters.get("kind") {
        if Kind::of(kind).is_none() {
            return Err(format!("there are no events of the kind {kind:?}; {}", kinds()));
        }
        events.retain(|event| event["event"] == **kind);
    }
    Ok(json!({"events": events, "next": next}))
}

fn kinds() -> String {
    let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    format!("there are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let ask = |key: &str, value: &str| page(&[(key.to_owned(), value.to_owned())].into());
        assert!(ask("since", "yesterday").unwrap_err().contains("number"));
        assert!(ask("kind", "denials").unwrap_err().contains("denied"));
        assert_eq!(ask("kind", "denied").unwrap()["events"], json!([]));
    }
}
