//! Falco's rules on our events, evaluated by a replayer of ours: no real Falco runs here. It knows of Falco's language what these
//! rules use, and refuses the rest: lists, macros, `and`, `or`, `not`, brackets; `=`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `contains`,
//! `startswith`, `endswith`, `exists`; and of fields `json.value[/POINTER]`, which is a text, empty where there is nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// The priorities that Falco knows.
const PRIORITIES: [&str; 8] =
    ["EMERGENCY", "ALERT", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFORMATIONAL", "DEBUG"];

#[derive(Debug)]
enum Test {
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
    Exists(String),
    Is(String, String, Vec<String>),
}

impl Test {
    fn holds(&self, event: &Value) -> bool {
        match self {
            Self::All(tests) => tests.iter().all(|t| t.holds(event)),
            Self::Any(tests) => tests.iter().any(|t| t.holds(event)),
            Self::Not(test) => !test.holds(event),
            Self::Exists(pointer) => event.pointer(pointer).is_some_and(|v| !v.is_null()),
            Self::Is(pointer, operator, values) => {
                let Some(value) = event.pointer(pointer) else { return operator == "!=" };
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let number = |text: &str| text.parse::<f64>().unwrap_or(f64::NAN);
                values.iter().any(|wanted| match operator.as_str() {
                    "=" | "in" => value == *wanted,
                    "!=" => value != *wanted,
                    "contains" => value.contains(wanted),
                    "startswith" => value.starts_with(wanted),
                    "endswith" => value.ends_with(wanted),
                    "<" => number(&value) < number(wanted),
                    "<=" => number(&value) <= number(wanted),
                    ">" => number(&value) > number(wanted),
                    _ => number(&value) >= number(wanted),
                })
            }
        }
    }
}

/// A reader of conditions.
struct Reader<'a> {
    words: Vec<String>,
    at: usize,
    lists: &'a BTreeMap<String, Vec<String>>,
    macros: &'a BTreeMap<String, String>,
}

/// Words, brackets and commas; a text in quotes is a word that begins with its quote. What is in a field's brackets is its own.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '(' | ')' | ',' => 1,
            '"' | '\'' => rest[1..].find(first).ok_or_else(|| format!("a quote is not closed: {rest}"))? + 2,
            '=' | '!' | '<' | '>' => rest.find(|c| !"=!<>".contains(c)).unwrap_or(rest.len()),
            _ => rest.find(|c: char| c.is_whitespace() || "(),=!<>\"'".contains(c)).unwrap_or(rest.len()),
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    Ok(words)
}

impl<'a> Reader<'a> {
    fn read(
        text: &str,
        lists: &'a BTreeMap<String, Vec<String>>,
        macros: &'a BTreeMap<String, String>,
    ) -> Result<Test, String> {
        let mut reader = Self { words: words(text)?, at: 0, lists, macros };
        let test = reader.any()?;
        match reader.peek() {
            None => Ok(test),
            Some(word) => Err(format!("what is {word:?} doing here: {text}")),
        }
    }

    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn next(&mut self) -> Result<String, String> {
        let word = self.words.get(self.at).cloned().ok_or("the condition breaks off")?;
        self.at += 1;
        Ok(word)
    }

    fn take(&mut self, word: &str) -> bool {
        let there = self.peek() == Some(word);
        self.at += usize::from(there);
        there
    }

    fn any(&mut self) -> Result<Test, String> {
        let mut tests = vec![self.all()?];
        while self.take("or") {
            tests.push(self.all()?);
        }
        Ok(Test::Any(tests))
    }

    fn all(&mut self) -> Result<Test, String> {
        let mut tests = vec![self.one()?];
        while self.take("and") {
            tests.push(self.one()?);
        }
        Ok(Test::All(tests))
    }

    fn one(&mut self) -> Result<Test, String> {
        if self.take("not") {
            return Ok(Test::Not(Box::new(self.one()?)));
        }
        if self.take("(") {
            let test = self.any()?;
            return if self.take(")") { Ok(test) } else { Err("a bracket is not closed".to_owned()) };
        }
        let word = self.next()?;
        let Some(pointer) = field(&word) else {
            let text = self.macros.get(&word).ok_or_else(|| format!("there is no macro {word:?}"))?;
            return Self::read(text, self.lists, self.macros);
        };
        let operator = self.next()?;
        let values = match operator.as_str() {
            "exists" => return Ok(Test::Exists(pointer)),
            "in" => self.values()?,
            "=" | "!=" | "contains" | "startswith" | "endswith" | "<" | "<=" | ">" | ">=" => {
                vec![plain(&self.next()?)]
            }
            other => return Err(format!("{other:?} is no operator that is known here")),
        };
        Ok(Test::Is(pointer, operator, values))
    }

    /// `(a, b)`, of which each may be a list's name.
    fn values(&mut self) -> Result<Vec<String>, String> {
        if !self.take("(") {
            return Err("in wants brackets".to_owned());
        }
        let mut values = Vec::new();
        loop {
            let word = self.next()?;
            match self.lists.get(&word) {
                Some(list) => values.extend(list.iter().cloned()),
                None => values.push(plain(&word)),
            }
            match self.next()?.as_str() {
                "," => {}
                ")" => return Ok(values),
                other => return Err(format!("{other:?} in a list")),
            }
        }
    }
}

fn field(word: &str) -> Option<String> {
    word.strip_prefix("json.value[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned)
}

fn plain(word: &str) -> String {
    word.trim_matches(['"', '\'']).to_owned()
}

#[derive(Debug)]
struct Rule {
    name: String,
    test: Test,
    fields: BTreeSet<String>,
}

/// Every pointer that a text asks for.
fn pointers(text: &str) -> impl Iterator<Item = String> {
    text.split("json.value[")
        .skip(1)
        .filter_map(|rest| rest.split_once(']'))
        .map(|(pointer, _)| pointer.to_owned())
}

/// Reads rules as Falco does: lists and macros come before whoever uses them.
fn rules(text: &str) -> Result<Vec<Rule>, String> {
    let items: Vec<BTreeMap<String, Value>> = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let (mut lists, mut macros, mut rules) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for item in items {
        let text = |key: &str| {
            item.get(key)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or_else(|| format!("{key} is missing in {item:?}"))
        };
        if item.contains_key("list") {
            let values = item["items"].as_array().ok_or("a list has items")?;
            let values = values.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
            lists.insert(text("list")?, values.collect());
        } else if item.contains_key("macro") {
            Reader::read(&text("condition")?, &lists, &macros)?;
            macros.insert(text("macro")?, text("condition")?);
        } else if item.contains_key("rule") {
            let (name, condition, output) = (text("rule")?, text("condition")?, text("output")?);
            let priority = text("priority")?;
            if !PRIORITIES.contains(&priority.as_str()) {
                return Err(format!("{name}: {priority} is no priority"));
            }
            if text("source")? != "kafka" || text("desc")?.is_empty() {
                return Err(format!("{name}: source and desc"));
            }
            let test = Reader::read(&condition, &lists, &macros).map_err(|e| format!("{name}: {e}"))?;
            let fields = pointers(&condition).chain(pointers(&output)).collect();
            rules.push(Rule { name, test, fields });
        } else if !item.contains_key("required_engine_version")
            && !item.contains_key("required_plugin_versions")
        {
            return Err(format!("what is {item:?}?"));
        }
    }
    Ok(rules)
}

#[derive(Deserialize)]
struct Case {
    rule: String,
    triggers: Value,
    near: Value,
}

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn each_rule_is_triggered_by_its_event_alone_and_has_a_near_miss() {
    let rules = rules(&file("deploy/integrations/falco/rules.yaml")).unwrap();
    let cases: Vec<Case> = serde_saphyr::from_str(&file("deploy/integrations/falco/events.yaml")).unwrap();
    let named: Vec<_> = rules.iter().map(|r| &r.name).collect();
    assert_eq!(named, cases.iter().map(|c| &c.rule).collect::<Vec<_>>(), "each rule has its case, in order");
    for case in &cases {
        let triggered = |event: &Value| -> Vec<&str> {
            rules.iter().filter(|r| r.test.holds(event)).map(|r| r.name.as_str()).collect()
        };
        // The authority's changes are administration that may be refused, too.
        assert_eq!(triggered(&case.triggers), [case.rule.as_str()], "{:#}", case.triggers);
        assert!(!triggered(&case.near).contains(&case.rule.as_str()), "{}: {:#}", case.rule, case.near);
    }
}

#[test]
fn rules_and_their_events_use_fields_that_are_documented() {
    let documented = file("docs/security-events.md");
    let known = |name: &str| documented.contains(&format!("`{name}`"));
    for rule in rules(&file("deploy/integrations/falco/rules.yaml")).unwrap() {
        for pointer in rule.fields {
            assert!(known(&pointer[1..]), "{}: docs/security-events.md does not know {pointer}", rule.name);
        }
    }
    let cases: Vec<Case> = serde_saphyr::from_str(&file("deploy/integrations/falco/events.yaml")).unwrap();
    for name in cases.iter().flat_map(|c| c.triggers.as_object().unwrap().keys()) {
        assert!(known(name), "docs/security-events.md does not know {name}");
    }
}

#[test]
fn the_replayer_decides_as_falcos_language_is_meant_and_refuses_what_it_does_not_know() {
    let lists = BTreeMap::from([("colours".to_owned(), vec!["red".to_owned(), "blue".to_owned()])]);
    let macros = BTreeMap::from([("small".to_owned(), "json.value[/n] < 10".to_owned())]);
    let event = serde_json::json!({"a": "red", "n": 7, "text": "one two"});
    for (condition, expected) in [
        ("json.value[/a] = red", true),
        ("json.value[/a] != red", false),
        ("json.value[/b] != red", true),
        ("json.value[/a] in (green, colours)", true),
        ("small and json.value[/text] contains \"e t\"", true),
        ("small and not json.value[/text] startswith two", true),
        ("json.value[/a] = blue or json.value[/n] >= 7 and json.value[/text] endswith two", true),
        ("(json.value[/a] = blue or json.value[/n] >= 7) and json.value[/text] endswith one", false),
        ("json.value[/a] exists and not json.value[/b] exists", true),
        ("json.value[/b] = ''", false),
    ] {
        assert_eq!(Reader::read(condition, &lists, &macros).unwrap().holds(&event), expected, "{condition}");
    }
    for wrong in [
        "large",
        "json.value[/a] glob r*",
        "json.value[/a] = red)",
        "(json.value[/a] = red",
        "json.value[/a] in red",
        "json.value[/a] =",
    ] {
        assert!(Reader::read(wrong, &lists, &macros).is_err(), "{wrong}");
    }
}
