//! `weft graph`: the mesh as a graph of who calls whom.

mod draw;

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::edges::{Between, Both, Edges, Pages, ask, since, within};
use super::proxies::Proxies;
use crate::cli::parse_duration;

/// Draws who calls whom: as text, for Graphviz, as a picture (SVG), or as JSON
#[derive(Args, Debug)]
pub struct GraphArgs {
    #[command(flatten)]
    proxies: Proxies,
    /// Only what comes from this namespace or goes there
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Count for so long; without it, what was sent since the proxies began
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    over: Option<Duration>,
    /// What is printed
    #[arg(long, short, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// A form of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Lines.
    Text,
    /// Graphviz's language.
    Dot,
    /// A picture.
    Svg,
    /// For programs.
    Json,
}

/// Prints it.
///
/// # Errors
/// The control plane does not answer, or no proxy does.
pub fn main(args: &GraphArgs) -> anyhow::Result<()> {
    let targets = args.proxies.targets()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut before = Pages::new();
    let mut over = None;
    if let Some(wanted) = args.over {
        let began = Instant::now();
        before = runtime.block_on(ask(&targets)).0;
        std::thread::sleep(wanted);
        over = Some(began);
    }
    let (pages, asked) = runtime.block_on(ask(&targets));
    let over = over.map(|began| began.elapsed());
    if pages.is_empty() {
        anyhow::bail!("{}", asked.missing().unwrap_or_default());
    }
    if let Some(missing) = asked.missing() {
        eprintln!("weft: {missing}");
    }
    let edges = within(since(&before, &pages), args.namespace.as_deref());
    match args.output {
        Form::Text => print!("{}", text(&edges, over)),
        Form::Dot => print!("{}", dot(&edges, over)),
        Form::Svg => print!("{}", draw::svg(&edges, over)),
        Form::Json => {
            let all: Vec<_> = edges.iter().map(|(between, both)| both.json(between, over)).collect();
            println!("{:#}", json!({"edges": all, "proxies": asked.proxies()}));
        }
    }
    Ok(())
}

/// What is said of an edge in a few words.
fn label(between: &Between, both: &Both, over: Option<Duration>) -> String {
    let told = both.told();
    let amount = |value: f64, what: &str| match over {
        Some(over) => format!("{:.1} {what}/s", value / over.as_secs_f64()),
        None => format!("{value} {what}"),
    };
    let mut said = match told.success() {
        Some(success) => {
            format!("{} {}, {:.1} %", between.protocol, amount(told.requests, "req"), success * 100.0)
        }
        None => format!("{} {}", between.protocol, amount(told.opened, "conn")),
    };
    match both.mutual() {
        Some(1.0) => said.push_str(", mTLS"),
        Some(0.0) => said.push_str(", no mTLS"),
        Some(share) => said.push_str(&format!(", {:.1} % mTLS", share * 100.0)),
        None => {}
    }
    said
}

fn text(edges: &Edges, over: Option<Duration>) -> String {
    if edges.is_empty() {
        return "nothing was sent\n".to_owned();
    }
    let mut out = String::new();
    let mut last = None;
    for (between, both) in edges {
        if last.replace(&between.from) != Some(&between.from) {
            out.push_str(&format!("{}\n", between.from));
        }
        out.push_str(&format!("  -> {}  ({})\n", between.to, label(between, both, over)));
    }
    out
}

fn dot(edges: &Edges, over: Option<Duration>) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = "digraph mesh {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for (between, both) in edges {
        out.push_str(&format!(
            "  {} -> {} [label={}, color={}];\n",
            quoted(&between.from.to_string()),
            quoted(&between.to.to_string()),
            quoted(&label(between, both, over)),
            quoted(draw::colour(both)),
        ));
    }
    out + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::edges::{Counts, End};

    pub(super) fn edges(all: &[(&str, &str)]) -> Edges {
        let end = |name: &str| End { name: name.to_owned(), namespace: "shop".to_owned() };
        let one = |(from, to): &(&str, &str)| {
            let between = Between { from: end(from), to: end(to), protocol: "http".to_owned() };
            let source = Counts { requests: 4.0, good: 3.0, ..Counts::default() };
            let destination = Counts { requests: 4.0, mutual: 4.0, ..Counts::default() };
            (between, Both { source, destination })
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn an_edge_is_said_in_a_few_words() {
        let edges = edges(&[("web", "cart"), ("web", "pay")]);
        assert_eq!(
            text(&edges, None),
            "web.shop\n  -> cart.shop  (http 4 req, 75.0 %, mTLS)\n  -> pay.shop  (http 4 req, 75.0 %, mTLS)\n"
        );
        assert!(text(&edges, Some(Duration::from_secs(2))).contains("http 2.0 req/s"));
    }

    #[test]
    fn names_are_quoted_for_graphviz() {
        let text = dot(&edges(&[("we\"b", "cart")]), None);
        assert!(
            text.contains("\"we\\\"b.shop\" -> \"cart.shop\" [label=\"http 4 req, 75.0 %, mTLS\""),
            "{text}"
        );
    }
}
