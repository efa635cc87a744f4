//! Expressions in CEL that messages carry (filters of access logs, labels of metrics): what both the control plane, which
//! checks them, and the proxy, which evaluates them, take.
//!
//! They come from whoever may write a Telemetry, and are evaluated for every request, so their cost has a bound: they are short,
//! which bounds how deep they nest, and they have no loops, so that each is done in time proportional to its length.

use cel::Program;
use cel::common::ast::{Expr, IdedExpr};

/// What an expression may begin with: what is known of a request or connection that has ended.
pub const ROOTS: [&str; 8] =
    ["request", "response", "source", "destination", "connection", "upstream", "xds", "filter_state"];

/// Longer ones are refused. The parser, the evaluation and the release of a tree recurse once for each link of a chain.
pub const LONGEST: usize = 1000;

/// Compiles an expression; gives it with the roots that it names.
///
/// # Errors
/// It is none, is too long or loops, or asks for what no stream has.
pub fn compile(text: &str) -> Result<(Program, Vec<&'static str>), String> {
    if text.len() > LONGEST {
        return Err(format!("the expression has {} bytes; {LONGEST} are the most", text.len()));
    }
    let program = Program::compile(text).map_err(|e| format!("{text:?} is no expression in CEL: {e}"))?;
    if loops(program.expression()) {
        return Err(format!(
            "{text:?} has a loop or makes a map or a message, which is not for every request"
        ));
    }
    let mut roots = Vec::new();
    for named in program.references().variables() {
        let known = ROOTS.iter().find(|root| **root == named);
        let known = known.ok_or_else(|| {
            format!("{text:?} asks for {named}, which requests do not have; there are {}", ROOTS.join(", "))
        })?;
        if !roots.contains(known) {
            roots.push(*known);
        }
    }
    Ok((program, roots))
}

/// Whether something is done for each of many, or made of many.
fn loops(expression: &IdedExpr) -> bool {
    match &expression.expr {
        Expr::Comprehension(_) | Expr::Map(_) | Expr::Struct(_) => true,
        Expr::Call(call) => call.target.iter().any(|target| loops(target)) || call.args.iter().any(loops),
        Expr::List(list) => list.elements.iter().any(loops),
        Expr::Select(select) => loops(&select.operand),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_requests_are_taken_with_their_roots() {
        let roots = |text: &str| compile(text).unwrap().1;
        assert_eq!(
            roots("response.code >= 500 || request.host in ['a', 'b'] || request.path == ''"),
            ["response", "request"]
        );
        assert_eq!(roots("has(request.headers.x) ? request.headers['x'] : 'none'"), ["request"]);
        assert_eq!(roots("'constant'"), [] as [&str; 0]);
    }

    #[test]
    fn what_costs_without_bound_is_refused() {
        let refused = |text: &str| compile(text).err().unwrap();
        assert!(refused("request.host ==").contains("no expression"));
        assert!(refused("node.id").contains("asks for node"));
        assert!(refused(&format!("request{}", ".a".repeat(100_000))).contains("bytes"));
        for text in [
            "[1, 2].all(x, [3].all(y, x < y))",
            "['a'].map(a, a + a)",
            "request.headers.exists(h, h == 'x')",
            "{'a': 1}.a == 1",
        ] {
            assert!(refused(text).contains("loop"), "{text}");
        }
        // As deep as the length allows: parsed, and let go again, on a thread's small stack.
        let deep = [
            format!("request{}", ".a".repeat(490)),
            format!("{}1{}", "(".repeat(400), ")".repeat(400)),
            format!("1{}", "+1".repeat(490)),
        ];
        for text in deep {
            let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || drop(compile(&text)));
            thread.unwrap().join().unwrap();
        }
    }
}
