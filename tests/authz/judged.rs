//! The tables as `weft authz check` answers them: the same worlds, asked in this process.

use serde_json::{Value, json};
use weft::authz::{Decision, Judge, Question, Request, workload};
use weft_proxy::listen::decide::{Decided, End};

use super::Place;
use super::clients::{Outcome, spiffe};
use super::table::{Case, Group, place_of};

impl Place {
    /// Asks about all requests. What was not as the tables say, and how many cases there are.
    pub fn judge(&self) -> (Vec<String>, usize) {
        let (mut wrong, mut count) = (Vec::new(), 0);
        for (index, (group, world)) in self.groups.iter().zip(&self.worlds).enumerate() {
            let judge = Judge::new(world, &workload(world, "shop/s").unwrap()).unwrap();
            for (number, case) in group.cases.iter().enumerate() {
                count += 1;
                if let Err(why) = self.ask(&judge, self.port_of(index), group, case, number) {
                    wrong.push(format!("{}: {}: {why}", group.name, case.text));
                }
            }
        }
        (wrong, count)
    }

    /// Asks about requests that somebody else may have the say about.
    pub fn judge_asked(&self) -> (Vec<String>, usize) {
        let (mut wrong, mut asked) = (Vec::new(), 0);
        for (index, (group, world)) in self.groups.iter().zip(&self.worlds).enumerate() {
            let judge = Judge::new(world, &workload(world, "shop/s").unwrap()).unwrap();
            for (number, case) in group.cases.iter().enumerate() {
                let answer = judge.answer(self.port_of(index), &question(group, case, number)).unwrap();
                asked += usize::from(answer.decision == Decision::Ask);
                let named =
                    answer.decision != Decision::Ask || (answer.by.is_some() && answer.provider.is_some());
                if !case.foreseen(answer.decision) || !named {
                    wrong.push(format!("{}: {}: {answer:?}", group.name, case.text));
                }
            }
        }
        (wrong, asked)
    }

    fn ask(&self, judge: &Judge, port: u16, group: &Group, case: &Case, number: usize) -> Result<(), String> {
        let question = question(group, case, number);
        let decided = judge.decide(port, &question).map_err(|error| error.to_string())?;
        let (outcome, line) = seen(&decided, case);
        case.check(group, &outcome, Some(&line))?;
        // What it says to people, too.
        let answer = judge.explain(port, &question, &decided);
        let decision = if outcome.allowed { Decision::Allow } else { Decision::Deny };
        let by = answer.by.as_ref().map(|by| (by.namespace.as_str(), by.name.as_str(), by.rule.unwrap()));
        let noted: Vec<_> =
            answer.audited_by.iter().map(|by| (by.namespace.as_str(), by.name.as_str())).collect();
        let wanted = case.by.as_ref().map(|(policy, rule)| {
            let (namespace, name, _) = place_of(policy);
            (namespace, name, *rule)
        });
        // What is noted and otherwise left alone has its name from the rule that notes it.
        let is_noted = || wanted.is_some_and(|(namespace, name, _)| noted.contains(&(namespace, name)));
        if answer.decision != decision || (by != wanted && !(by.is_none() && is_noted())) {
            return Err(format!("the answer is {answer:?}"));
        }
        Ok(())
    }
}

fn question(group: &Group, case: &Case, number: usize) -> Question {
    let mut headers = vec![("x-case".to_owned(), number.to_string())];
    headers.extend(case.headers.clone());
    Question {
        identity: case.identity.as_deref().map(spiffe),
        from: Some(case.from.as_deref().unwrap_or("127.0.0.1").parse().unwrap()),
        server_name: case.identity.as_ref().map(|_| case.sni.clone().unwrap_or_else(|| "s.shop".into())),
        request: (!group.tcp).then(|| Request {
            method: case.method.clone(),
            path: case.path.clone(),
            host: case.host.clone(),
            headers,
            token: None,
        }),
    }
}

/// What a client and an access log would have seen.
fn seen(decided: &Decided, case: &Case) -> (Outcome, Value) {
    let mut outcome = Outcome::default();
    let metadata = |namespace: &str, key: &str| {
        let value = decided.metadata.get(namespace, &[key]);
        value.map_or_else(|| json!("-"), |value| xds_protos::value::to_json(&value))
    };
    let rbac = |key: &str| metadata("envoy.filters.http.rbac", key);
    let mut line = json!({
        "policy": rbac("enforced_effective_policy_id"),
        "try-allow": rbac("istio_dry_run_allow_shadow_engine_result"),
        "try-deny": rbac("istio_dry_run_deny_shadow_engine_result"),
        "audit": metadata("envoy.common", "access_log_hint"),
    });
    match &decided.end {
        End::Bytes => outcome.allowed = true,
        End::Request(head) => {
            outcome.allowed = true;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let fields =
                head.headers.iter().map(|(name, value)| format!("{name}: {}", text(value.as_bytes())));
            let first = format!("{} {} HTTP/1.1", head.method, text(&head.path));
            let lines: Vec<_> = ["200 yes".to_owned(), first].into_iter().chain(fields).collect();
            outcome.text = lines.join("\n");
        }
        End::Closed(words) => {
            line["termination"] = (**words).into();
            outcome.text = "\"\"".to_owned();
        }
        End::Answered(reply) => {
            let body = if case.method == "HEAD" { "".into() } else { String::from_utf8_lossy(&reply.body) };
            outcome.text = format!("{} {body}", reply.status.as_u16());
            let fields =
                reply.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            outcome.head = fields.collect::<Vec<_>>().join("\n");
            line["details"] = (*reply.details).into();
        }
        other => outcome.text = format!("{other:?}"),
    }
    (outcome, line)
}
