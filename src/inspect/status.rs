//! `weft proxy-status`: who is connected to a control plane, and how far everyone follows.

use anyhow::bail;
use clap::Args;
use serde_json::Value;

use super::{Output, address, ask_json, replicas, rows};

/// Shows the proxies that are connected to a control plane, and how far they follow it
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// One proxy alone: NAME.NAMESPACE, or its whole id
    proxy: Option<String>,
    /// The control plane's debug port, IP:PORT; IP alone is port 8080. Several, with commas between them, where several control planes run;
    /// `cluster`, or `cluster/NAMESPACE`: all of the cluster that $KUBECONFIG or ~/.kube/config names, through its API server
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "127.0.0.1")]
    control: Vec<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The columns of types: their title, and how the page names them.
const TYPES: [(&str, &str); 5] =
    [("CDS", "cluster"), ("LDS", "listener"), ("EDS", "endpoint"), ("RDS", "route"), ("SDS", "secret")];

/// Prints it.
///
/// # Errors
/// The control plane does not answer, or does not know the proxy.
pub fn main(args: &StatusArgs) -> anyhow::Result<()> {
    let mut all: Vec<Value> = Vec::new();
    for control in replicas::expanded(&args.control)? {
        let at = address(&control, 8080)?;
        let hint = format!("is a control plane's debug port at {at}? (--control says where)");
        let page = ask_json(at, "/debug/syncz", &hint)?;
        all.extend(page.as_array().cloned().unwrap_or_default());
    }
    all.sort_by_key(|one| short(one).to_owned());
    let chosen: Vec<Value> = match &args.proxy {
        None => all,
        Some(name) => {
            let found: Vec<_> = all
                .iter()
                .filter(|one| one["proxy"] == name.as_str() || short(one) == name)
                .cloned()
                .collect();
            if found.is_empty() {
                let known: Vec<_> = all.iter().map(short).collect();
                bail!("no proxy {name:?} is connected; there are {}", known.join(", "));
            }
            found
        }
    };
    match args.output {
        Output::Json => println!("{:#}", Value::from(chosen)),
        Output::Text => print!("{}", text(&chosen)),
    }
    Ok(())
}

fn short(proxy: &Value) -> &str {
    let id = proxy["proxy"].as_str().unwrap_or_default();
    id.split('~').nth(2).unwrap_or(id)
}

fn text(proxies: &[Value]) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = proxies
        .iter()
        .map(|one| {
            let mut row = vec![short(one).to_owned(), word(&one["proxy_type"])];
            row.extend(TYPES.iter().map(|(_, name)| word(&one[format!("{name}_status")])));
            row.extend([word(&one["agent"]), word(&one["identity"])]);
            row
        })
        .collect();
    let head: Vec<&str> = ["NAME", "TYPE"]
        .into_iter()
        .chain(TYPES.map(|(title, _)| title))
        .chain(["PROXY", "IDENTITY"])
        .collect();
    let mut out = rows::table(&head, &rows);
    for one in proxies {
        for (title, name) in TYPES {
            if let Some(why) = one[format!("{name}_error")].as_str() {
                out.push_str(&format!("{}: {title} refused: {why}\n", short(one)));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn what_a_proxy_refuses_is_said_below() {
        let page = [
            json!({"proxy": "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local", "proxy_type": "sidecar", "agent": "weft 1",
            "cluster_status": "SYNCED", "listener_status": "ERROR", "listener_error": "no such filter"}),
        ];
        let text = super::text(&page);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("NAME") && lines[1].starts_with("web.shop  sidecar  SYNCED  ERROR"),
            "{text}"
        );
        assert_eq!(lines[2], "web.shop: LDS refused: no such filter");
    }
}
