//! Documents that do not fit, and what is said about them.

use super::super::tree;
use super::*;
use crate::model::{PeerAuthentication, VirtualService};

fn read<'de, T: de::Deserialize<'de>>(node: &'de Node) -> (Option<T>, Vec<String>) {
    let mut findings = Findings::default();
    let value = decode(node, "spec", &|_, _, _| None, &mut findings);
    let texts = findings
        .0
        .iter()
        .map(|f| {
            format!("{} {}: {}; {}", f.line.unwrap_or(0), f.path, f.reason, f.help.as_deref().unwrap_or("-"))
        })
        .collect();
    (value, texts)
}

fn one(text: &str) -> Node {
    tree::parse(text).unwrap().remove(0)
}

#[test]
fn every_unknown_field_is_found_with_its_place() {
    let node = one("http:\n- retries:\n    atempts: 3\n    retryOn: 5xx\n  timeuot: 1s\n- nonsense: 1\n");
    let (value, texts) = read::<VirtualService>(&node);
    assert!(value.is_some());
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert_eq!(texts[0], "3 spec.http[0].retries.atempts: unknown field; did you mean \"attempts\"?");
    assert_eq!(texts[1], "5 spec.http[0].timeuot: unknown field; did you mean \"timeout\"?");
    assert!(
        texts[2].starts_with("6 spec.http[1].nonsense: unknown field; the fields here are "),
        "{texts:?}"
    );
}

#[test]
fn a_value_of_the_wrong_type_says_what_is_expected() {
    let cases = [
        (
            "http:\n- retries:\n    attempts: three\n",
            "3 spec.http[0].retries.attempts: expected a number, found the text \"three\"; -",
        ),
        (
            "http:\n- route:\n  - weight: -1\n",
            "3 spec.http[0].route[0].weight: expected a whole number from 0 to 4294967295, found the number -1; -",
        ),
        (
            "http:\n- timeout: 30\n",
            "2 spec.http[0].timeout: the duration \"30\" lacks a unit; write \"30s\" for seconds; -",
        ),
        (
            "http:\n- match:\n  - headers:\n      canary:\n        exact: true\n",
            "5 spec.http[0].match[0].headers.canary.exact: expected a text, found the boolean true; put it in quotes",
        ),
        ("hosts: a\n", "1 spec.hosts: expected a list, found the text \"a\"; -"),
        (
            "http:\n  route: []\n",
            "2 spec.http: expected a list, found an object; begin its entries with \"- \"",
        ),
    ];
    for (text, expected) in cases {
        let node = one(text);
        let (value, texts) = read::<VirtualService>(&node);
        assert!(value.is_none(), "{text}");
        assert_eq!(texts, [expected], "{text}");
    }
}

#[test]
fn an_unknown_enum_value_is_answered_with_the_nearest() {
    let node = one("mtls:\n  mode: STRICKT\n");
    let (_, texts) = read::<PeerAuthentication>(&node);
    assert_eq!(texts, ["2 spec.mtls.mode: unknown value \"STRICKT\"; did you mean STRICT?"]);
}

#[test]
fn ports_may_be_keys() {
    let node = one("portLevelMtls:\n  8080:\n    mode: DISABLE\n");
    let (value, texts) = read::<PeerAuthentication>(&node);
    assert_eq!(texts, [] as [&str; 0]);
    assert!(value.is_some_and(|policy| policy.port_level_mtls.contains_key(&8080)));
    let node = one("portLevelMtls:\n  http:\n    mode: DISABLE\n");
    let (_, texts) = read::<PeerAuthentication>(&node);
    assert_eq!(texts, ["2 spec.portLevelMtls.http: \"http\" is no port; ports go from 1 to 65535; -"]);
}

#[test]
fn an_empty_field_is_an_absent_field() {
    let node = one("mtls:\nselector:\n");
    let (value, texts) = read::<PeerAuthentication>(&node);
    assert_eq!((value, texts.len()), (Some(PeerAuthentication::default()), 0));
}
