//! `weft traffic-status`: how versions on trial stand, and how circuits are.

use clap::Args;
use serde_json::{Value, json};

use super::{Output, address, ask_json, replicas, rows};

/// Shows versions on trial (what share they get, what was counted, what was decided), and circuits (closed, open, half open)
#[derive(Args, Debug)]
pub struct TrafficArgs {
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. Several, with commas between them, where several control planes run:
    /// the one that leads has the counts; `cluster`, or `cluster/NAMESPACE`: all of the cluster that $KUBECONFIG or ~/.kube/config names,
    /// through its API server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    control: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Prints it.
///
/// # Errors
/// No control plane answers.
pub fn main(args: &TrafficArgs) -> anyhow::Result<()> {
    let (mut pages, mut silent) = (Vec::new(), Vec::new());
    for control in replicas::expanded(&args.control)? {
        let at = address(&control, 8080)?;
        let hint = format!("is a control plane's debug port at {at}? (--control says where)");
        match ask_json(at, "/debug/trafficz", &hint) {
            Ok(page) => pages.push(page),
            Err(error) => silent.push(error),
        }
    }
    if pages.is_empty()
        && let Some(error) = silent.pop()
    {
        return Err(error);
    }
    silent.iter().for_each(|error| eprintln!("weft: {error:#}; this control plane is left out"));
    let page = together(pages);
    if page["leads"] == false {
        eprintln!(
            "weft: none of those that were asked leads: shares are as they were decided last, and what is counted is at the one that does \
             (--control cluster asks all)"
        );
    }
    match args.output {
        Output::Json => println!("{page:#}"),
        Output::Text => {
            let list = |name: &str| page[name].as_array().cloned().unwrap_or_default();
            let (trials, circuits) = (list("trials"), list("circuitBreakers"));
            if !trials.is_empty() {
                print!("{}", text(&trials));
            }
            if !circuits.is_empty() {
                print!("{}{}", if trials.is_empty() { "" } else { "\n" }, circuits_text(&circuits));
            }
            if trials.is_empty() && circuits.is_empty() {
                println!("no TrafficManagement is there");
            }
        }
    }
    Ok(())
}

/// What several say: who leads knows what was counted, the others what was decided.
fn together(mut pages: Vec<Value>) -> Value {
    let leads = pages.iter().any(|page| page["leads"] == true);
    match leads {
        true => pages.retain(|page| page["leads"] == true),
        false => pages.truncate(1),
    }
    if pages.len() == 1 {
        return pages.remove(0);
    }
    let all = |name: &str| -> Value {
        pages.iter().flat_map(|page| page[name].as_array().into_iter().flatten().cloned()).collect()
    };
    json!({"leads": leads, "trials": all("trials"), "circuitBreakers": all("circuitBreakers")})
}

fn circuits_text(circuits: &[Value]) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let row = |of: &str, proxy: String, one: &Value| {
        let counts = [&one["failureCount"], &one["successCount"]].map(ToString::to_string);
        let [failures, successes] = counts;
        let times = [word(&one["lastFailureTime"]), word(&one["nextRetryTime"])];
        let [failure, retry] = times;
        vec![of.to_owned(), proxy, word(&one["state"]), failures, successes, failure, retry]
    };
    let mut table = Vec::new();
    for one in circuits {
        let service = word(&one["service"]);
        let proxies = one["proxies"].as_array().map(Vec::as_slice).unwrap_or_default();
        table.push(row(&service, format!("all {}", proxies.len()), one));
        table.extend(proxies.iter().map(|proxy| row(&service, word(&proxy["address"]), proxy)));
    }
    let head = ["SERVICE", "PROXY", "CIRCUIT", "FAILURES", "SUCCESSES", "LAST FAILURE", "NEXT RETRY"];
    rows::table(&head, &table)
}

fn text(trials: &[Value]) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let table: Vec<Vec<String>> = trials
        .iter()
        .map(|one| {
            let period = &one["period"];
            let p95 = period["p95"].as_f64().map_or("-".to_owned(), |p95| format!("{p95:.0} ms"));
            vec![
                format!("{}/{}", word(&one["namespace"]), word(&one["name"])),
                word(&one["service"]),
                word(&one["stableVersion"]),
                word(&one["canaryVersion"]),
                format!("{} %", one["canaryPercent"]),
                word(&one["phase"]),
                period["requests"].to_string(),
                format!("{:.2} %", period["errorRate"].as_f64().unwrap_or_default()),
                p95,
                match one["countsFrom"].as_str() {
                    Some("proxies") | None => {
                        format!("{}/{}", one["proxies"]["answered"], one["proxies"]["asked"])
                    }
                    Some(prometheus) => prometheus.to_owned(),
                },
            ]
        })
        .collect();
    let head =
        ["TRIAL", "SERVICE", "STABLE", "CANARY", "SHARE", "PHASE", "REQUESTS", "ERRORS", "P95", "COUNTED BY"];
    let mut out = rows::table(&head, &table);
    for one in trials {
        out.push_str(&format!(
            "{}/{}: {}\n",
            word(&one["namespace"]),
            word(&one["name"]),
            word(&one["message"])
        ));
        if let Some(problem) = one["problem"].as_str() {
            out.push_str(&format!("{}/{}: {problem}\n", word(&one["namespace"]), word(&one["name"])));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    #[test]
    fn of_several_control_planes_those_that_lead_are_heard() {
        let page = |leads: bool, name: &str| json!({"leads": leads, "trials": [name], "circuitBreakers": []});
        let told = |pages: Vec<Value>| {
            let page = super::together(pages);
            (page["leads"].clone(), page["trials"].clone())
        };
        assert_eq!(
            told(vec![page(false, "a"), page(true, "b"), page(false, "c")]),
            (json!(true), json!(["b"]))
        );
        // Each decides for itself where nothing is shared.
        assert_eq!(told(vec![page(true, "a"), page(true, "b")]), (json!(true), json!(["a", "b"])));
        assert_eq!(told(vec![page(false, "a"), page(false, "b")]), (json!(false), json!(["a"])));
    }

    #[test]
    fn a_circuit_is_told_for_all_proxies_and_for_each() {
        let one = json!({"state": "OPEN", "failureCount": 5, "successCount": 7, "lastFailureTime": "2026-01-01T00:00:00Z",
            "nextRetryTime": null, "address": "10.0.0.1"});
        let mut all = one.clone();
        (all["service"], all["proxies"]) = ("pay.shop".into(), json!([one]));
        let text = super::circuits_text(&[all]);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|l| l.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect()).collect();
        assert_eq!(lines[1], ["pay.shop", "all 1", "OPEN", "5", "7", "2026-01-01T00:00:00Z", "-"]);
        assert_eq!(lines[2][1], "10.0.0.1");
    }

    #[test]
    fn a_trial_is_a_row_and_what_was_decided_last_is_said_below() {
        let trial = json!({
            "namespace": "shop", "name": "cart", "service": "cart.shop.svc.cluster.local", "stableVersion": "v1",
            "canaryVersion": "v2", "phase": "Progressing", "canaryPercent": 10, "message": "v2 gets 10 %",
            "period": {"requests": 100, "errors": 1, "errorRate": 1.0, "p95": 12.3},
            "proxies": {"asked": 3, "answered": 2}, "decisions": [],
        });
        let text = super::text(std::slice::from_ref(&trial));
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "shop/cart",
                "cart.shop.svc.cluster.local",
                "v1",
                "v2",
                "10 %",
                "Progressing",
                "100",
                "1.00 %",
                "12 ms",
                "2/3"
            ]
        );
        assert_eq!(lines[2], ["shop/cart: v2 gets 10 %"]);
        let mut held = trial;
        (held["problem"], held["countsFrom"]) = ("nobody answers".into(), "http://p:9090".into());
        let text = super::text(&[held]);
        assert!(text.contains("http://p:9090") && text.ends_with("shop/cart: nobody answers\n"), "{text}");
    }
}
