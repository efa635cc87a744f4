//! Answers for people.

use std::fmt::Write;

use crate::authz::{Answer, Decision, Question, Reach, Way};

/// A verdict and why.
pub(super) fn answer(answer: &Answer, question: &Question) -> String {
    let mut text = String::new();
    let verdict = match answer.decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
        Decision::Ask => "ask",
    };
    let asked =
        question.request.as_ref().map_or_else(|| "bytes".to_owned(), |r| format!("{} {}", r.method, r.path));
    let from = question.identity.as_deref().unwrap_or("a caller without an identity, in plain text");
    let Answer { workload, port, protocol, .. } = answer;
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{verdict}: {asked} from {from} to {workload} port {port} ({protocol})");
    let _ = writeln!(text, "  because   {}", answer.reason);
    if let Some(by) = &answer.by {
        let _ = writeln!(text, "  decided by {by}");
    }
    if let Some(status) = answer.status {
        let _ = writeln!(text, "  answer    {status}, {}", answer.details.as_deref().unwrap_or_default());
    } else if let Some(details) = &answer.details {
        let _ = writeln!(text, "  closed    {details}");
    }
    for rule in &answer.audited_by {
        let _ = writeln!(text, "  noted by  {rule}");
    }
    for tried in &answer.tried {
        let _ = writeln!(text, "  tried     {tried}");
    }
    for note in &answer.notes {
        let _ = writeln!(text, "  note      {note}");
    }
    text
}

/// Who can come to a workload.
pub(super) fn reach(workload: &str, ports: &[Reach]) -> String {
    let mut text = String::new();
    for Reach { port, anybody, identities, tried } in ports {
        let _ = writeln!(text, "{workload} port {port}");
        list(&mut text, "anybody, unauthenticated in plain text", &anybody.unauthenticated);
        list(&mut text, "anybody who has an identity of the mesh", &anybody.in_mesh);
        let (can, cannot): (Vec<_>, Vec<_>) = identities.iter().partition(|who| !who.ways.is_empty());
        for who in can {
            let unknown = if who.unknown { " (named by a policy; no workload has it)" } else { "" };
            list(&mut text, &format!("{}{unknown}", who.identity), &who.ways);
        }
        if anybody.unauthenticated.is_empty() && identities.iter().all(|who| who.ways.is_empty()) {
            let _ = writeln!(text, "  nobody");
        }
        for who in cannot {
            let _ = writeln!(text, "  not {}", who.identity);
        }
        if *tried > 1 {
            let _ = writeln!(text, "  (found by {tried} requests, made from what the policies speak of)");
        }
    }
    text
}

fn list(text: &mut String, who: &str, ways: &[Way]) {
    for (index, way) in ways.iter().enumerate() {
        if index == 0 {
            let _ = writeln!(text, "  {who}");
        }
        let by = match &way.by {
            Some(by) => format!("by {by}"),
            None => "since no ALLOW policy holds, and none denies it".to_owned(),
        };
        let _ = write!(text, "    {by}");
        if let Some(example) = &way.example {
            let _ = write!(text, "; such as {example}");
        }
        if let Some(token) = &way.token {
            let _ = write!(text, "; with a token that says {token}");
        }
        if let Some(from) = way.from {
            let _ = write!(text, "; from addresses such as {from}");
        }
        if let Some(provider) = &way.provider {
            let _ = write!(text, "; if the provider {provider} says yes");
        }
        text.push('\n');
    }
}
