//! `weft config-status`: how every object stands that control planes have read.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::{Output, address, ask_json, replicas, rows};

/// Shows the objects that a control plane has read: whether each is valid, on how many of the connected proxies it is in effect, what there
/// is to say of it
#[derive(Args, Debug)]
pub struct ObjectsArgs {
    /// Only these: KIND, NAME, NAMESPACE/NAME, or KIND and NAMESPACE/NAME with a blank between, as messages name objects
    object: Option<String>,
    /// Only those of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only those that are not valid, not in effect everywhere (also because others were refused with them), or warned of
    #[arg(long)]
    problems: bool,
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. Several, with commas between them, where several control planes run;
    /// `cluster`, or `cluster/NAMESPACE`: all of the cluster that $KUBECONFIG or ~/.kube/config names, through its API server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    control: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints it.
///
/// # Errors
/// A control plane does not answer.
pub fn main(args: &ObjectsArgs) -> anyhow::Result<()> {
    let mut pages = Vec::new();
    for control in replicas::expanded(&args.control)? {
        let at = address(&control, 8080)?;
        let hint = format!("is a control plane's debug port at {at}? (--control says where)");
        pages.push(ask_json(at, "/debug/configz", &hint)?);
    }
    let refused = pages.iter().any(|page| page["refused"] == true);
    let all: Vec<Value> = together(&pages)
        .into_iter()
        .filter(|one| args.object.as_ref().is_none_or(|wanted| is_meant(one, wanted)))
        .filter(|one| args.namespace.as_ref().is_none_or(|wanted| one["namespace"] == wanted.as_str()))
        .filter(|one| !args.problems || is_problem(&one["status"]))
        .collect();
    match args.output {
        Output::Json => println!("{:#}", json!({"refused": refused, "objects": all})),
        Output::Text => {
            print!("{}", text(&all));
            if refused {
                println!(
                    "what is wrong refuses all that was changed with it (OthersRefused): the last state that was right is in force"
                );
            }
        }
    }
    Ok(())
}

/// What several control planes say: each knows the proxies that are connected to it.
fn together(pages: &[Value]) -> Vec<Value> {
    let mut all: BTreeMap<[String; 3], Value> = BTreeMap::new();
    for one in pages.iter().flat_map(|page| page["objects"].as_array().into_iter().flatten()) {
        let key = ["kind", "namespace", "name"].map(|part| one[part].as_str().unwrap_or_default().to_owned());
        let Some(known) = all.get_mut(&key).map(|known| &mut known["status"]) else {
            all.insert(key, one.clone());
            continue;
        };
        let new = &one["status"];
        for part in ["taken", "connected"] {
            let count = |of: &Value| of["proxies"][part].as_u64().unwrap_or_default();
            known["proxies"][part] = (count(known) + count(new)).into();
        }
        // What one of them cannot take, or has not yet, is worth more than what all others say.
        for part in ["valid", "effective"] {
            if new[part] == false && known[part] == true {
                known[part] = false.into();
                known["reason"] = new["reason"].clone();
            }
        }
        let said = known["validationMessages"].as_array().cloned().unwrap_or_default();
        let more = new["validationMessages"].as_array().into_iter().flatten();
        let more: Vec<_> = more.filter(|message| !said.contains(message)).cloned().collect();
        known["validationMessages"] = said.into_iter().chain(more).collect();
    }
    all.into_values().collect()
}

fn label(one: &Value) -> [String; 3] {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (word(&one["kind"]), word(&one["name"]));
    let full = format!("{}/{name}", word(&one["namespace"]));
    [kind, name, full]
}

fn is_meant(one: &Value, wanted: &str) -> bool {
    let [kind, name, full] = label(one);
    match wanted.split_once(' ') {
        Some((of, named)) => kind.eq_ignore_ascii_case(of) && full == named,
        None => kind.eq_ignore_ascii_case(wanted) || name == wanted || full == wanted,
    }
}

fn is_problem(status: &Value) -> bool {
    let worth = |message: &Value| message["level"] != "INFO";
    let said = status["validationMessages"].as_array().is_some_and(|all| all.iter().any(worth));
    status["valid"] != true || status["effective"] != true || said
}

fn text(all: &[Value]) -> String {
    if all.is_empty() {
        return "no such object\n".to_owned();
    }
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let yes = |value: &Value| if *value == true { "yes" } else { "no" }.to_owned();
    let row = |one: &Value| {
        let ([kind, _, full], status) = (label(one), &one["status"]);
        let on = format!("{} of {}", status["proxies"]["taken"], status["proxies"]["connected"]);
        vec![kind, full, yes(&status["valid"]), word(&status["reason"]), on, word(&one["source"])]
    };
    let table: Vec<_> = all.iter().map(row).collect();
    let mut out = rows::table(&["KIND", "OBJECT", "VALID", "IN EFFECT", "PROXIES", "SOURCE"], &table);
    for one in all {
        let [kind, _, full] = label(one);
        for message in one["status"]["validationMessages"].as_array().into_iter().flatten() {
            let (level, said) = (word(&message["level"]), word(&message["message"]));
            out.push_str(&rows::plain(&format!("{level}: {kind} {full}: {said}")));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, taken: u64, connected: u64, message: &str) -> Value {
        let messages: Vec<Value> = match message {
            "" => Vec::new(),
            said => vec![json!({"level": "WARNING", "message": said})],
        };
        json!({"kind": "Sidecar", "namespace": "shop", "name": name, "source": "a.yaml:1", "status": {
            "valid": true, "effective": taken == connected, "reason": if taken == connected { "Delivered" } else { "Pending" },
            "proxies": {"taken": taken, "connected": connected}, "validationMessages": messages}})
    }

    #[test]
    fn control_planes_count_together() {
        let page = |objects: Vec<Value>| json!({"objects": objects});
        let all = together(&[
            page(vec![object("a", 2, 2, "odd"), object("b", 1, 1, "")]),
            page(vec![object("a", 1, 3, "odd")]),
        ]);
        let status = &all[0]["status"];
        assert_eq!(status["proxies"], json!({"taken": 3, "connected": 5}));
        assert_eq!((&status["effective"], &status["reason"]), (&json!(false), &json!("Pending")));
        assert_eq!(status["validationMessages"].as_array().unwrap().len(), 1);
        let text = text(&all);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("shop/a") && lines[1].contains("3 of 5"), "{text}");
        assert!(lines[2].contains("Delivered") && lines[2].contains("1 of 1"), "{text}");
        assert_eq!(lines[3], "WARNING: Sidecar shop/a: odd");
    }

    #[test]
    fn objects_are_asked_for_as_messages_name_them() {
        let one = object("a", 1, 1, "");
        for wanted in ["sidecar", "a", "shop/a", "Sidecar shop/a"] {
            assert!(is_meant(&one, wanted), "{wanted}");
        }
        for other in ["Gateway", "b", "other/a", "Gateway shop/a"] {
            assert!(!is_meant(&one, other), "{other}");
        }
        assert!(!is_problem(&one["status"]));
        assert!(
            is_problem(&object("a", 0, 1, "")["status"]) && is_problem(&object("a", 1, 1, "odd")["status"])
        );
        // It is right, and was refused with others, by a control plane to which no proxy is connected.
        let mut refused = object("a", 0, 0, "");
        refused["status"]["effective"] = false.into();
        refused["status"]["reason"] = "OthersRefused".into();
        assert!(is_problem(&refused["status"]));
        let all = together(&[json!({"objects": [one]}), json!({"objects": [refused]})]);
        assert_eq!(all[0]["status"]["reason"], "OthersRefused");
    }
}
