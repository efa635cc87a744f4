//! Small changes to an object, one at a time: a field taken away, emptied, of another type, out of range, or one that nobody knows.

use serde_json::{Value, json};

/// A changed object, and what was changed.
pub struct Mutant {
    /// Where, with `[]` for any element: `spec.http[].timeout`.
    pub path: String,
    /// What was done there.
    pub what: &'static str,
    pub object: Value,
}

/// Values in a string's place.
const TEXTS: [(&str, &str); 9] = [
    ("empty text", ""),
    ("a star", "*"),
    ("a star in the middle", "a.*.example"),
    ("no name", "-Bad_Name!"),
    ("no time", "0s"),
    ("a negative time", "-1s"),
    ("a moment", "1us"),
    ("a time", "1h1m"),
    ("a path", "/a/../b?c#d"),
];
/// Values in a number's place.
const NUMBERS: [(&str, i64); 4] =
    [("nought", 0), ("a negative number", -1), ("a hundred and one", 101), ("a large number", 70_000)];

/// Every change of a kind at every place below `spec`.
pub fn mutants(object: &Value) -> Vec<Mutant> {
    let mut places = Vec::new();
    walk(&object["spec"], &mut vec!["spec".to_owned()], &mut places);
    let mut all = Vec::new();
    for place in places {
        let pointer: String = place.iter().map(|part| format!("/{part}")).collect();
        let path = generalised(&place);
        let mut add = |what: &'static str, value: Value| {
            let mut changed = object.clone();
            if let Some(at) = changed.pointer_mut(&pointer)
                && *at != value
            {
                *at = value;
                all.push(Mutant { path: path.clone(), what, object: changed });
            }
        };
        let present = object.pointer(&pointer).unwrap_or(&Value::Null);
        match present {
            Value::String(_) => {
                TEXTS.iter().for_each(|(what, text)| add(what, json!(text)));
                add("a number for a text", json!(5));
            }
            Value::Number(_) => {
                NUMBERS.iter().for_each(|(what, number)| add(what, json!(number)));
                add("a text for a number", json!("five"));
            }
            Value::Bool(_) => add("a text for a truth", json!("yes")),
            Value::Array(items) => {
                add("an empty list", json!([]));
                add("a text for a list", json!("x"));
                if let Some(first) = items.first() {
                    add("an element twice", json!([items.as_slice(), std::slice::from_ref(first)].concat()));
                }
            }
            Value::Object(fields) => {
                add("an empty object", json!({}));
                add("a text for an object", json!("x"));
                let mut more = fields.clone();
                more.insert("bogus".to_owned(), json!(1));
                add("an unknown field", Value::Object(more));
            }
            Value::Null => {}
        }
        let (last, above) = (place.last().cloned().unwrap_or_default(), &place[..place.len() - 1]);
        let above: String = above.iter().map(|part| format!("/{part}")).collect();
        let mut less = object.clone();
        match less.pointer_mut(&above) {
            Some(Value::Object(fields)) if !above.is_empty() => _ = fields.remove(&last),
            Some(Value::Array(items)) => _ = items.remove(last.parse().unwrap_or_default()),
            _ => continue,
        }
        all.push(Mutant { path, what: "gone", object: less });
    }
    all
}

fn walk(value: &Value, at: &mut Vec<String>, places: &mut Vec<Vec<String>>) {
    places.push(at.clone());
    let below: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| (escaped(key), value)).collect(),
        // The rest is like the first two.
        Value::Array(items) => {
            items.iter().take(2).enumerate().map(|(n, value)| (n.to_string(), value)).collect()
        }
        _ => return,
    };
    for (key, value) in below {
        at.push(key);
        walk(value, at, places);
        at.pop();
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn generalised(place: &[String]) -> String {
    place.iter().fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(_) => path + "[]",
        Err(_) if path.is_empty() => part.clone(),
        Err(_) => path + "." + part,
    })
}
