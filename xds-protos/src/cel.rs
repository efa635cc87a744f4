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

/// Bytes of the longest expression.
pub const LONGEST: usize = 1000;

/// Operators, brackets and dots of the longest expression. The parser, the evaluation and the release of a tree recurse for each
/// link of a chain and each bracket, some of them through a dozen of calls.
pub const MOST_STEPS: usize = 64;

fn steps(text: &str) -> usize {
    // Two characters of one operator are two, and so are those in texts: what counts is that there are no more than these.
    text.bytes().filter(|byte| b".([{?+-*/%<>=!&|".contains(byte)).count()
}

/// Compiles an expression; gives it with the roots that it names.
///
/// # Errors
/// It is none, is too long or loops, or asks for what no stream has.
pub fn compile(text: &str) -> Result<(Program, Vec<&'static str>), String> {
    if text.len() > LONGEST {
        return Err(format!("the expression has {} bytes; {LONGEST} are the most", text.len()));
    }
    if steps(text) > MOST_STEPS {
        return Err(format!(
            "the expression has {} operators, brackets and dots; {MOST_STEPS} are the most",
            steps(text)
        ));
    }
    let program = parse(text)?;
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
    roots.sort_unstable();
    Ok((program, roots))
}

/// The parser goes through a dozen of calls for each bracket, with room for each of them: it gets a thread with a stack that the
/// longest expression surely fits. Expressions are parsed when configuration comes, and not for requests.
fn parse(text: &str) -> Result<Program, String> {
    const STACK: usize = 64 << 20;
    let failed =
        |_| "no thread can be had to read an expression; there are too many, or too little memory".to_owned();
    let parsed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK);
        thread.spawn_scoped(scope, || Program::compile(text)).map(|thread| thread.join())
    });
    match parsed.map_err(failed)? {
        Ok(parsed) => parsed.map_err(|e| format!("{text:?} is no expression in CEL: {e}")),
        Err(_) => Err(format!("{text:?} cannot be read: report this")),
    }
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
            ["request", "response"]
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
        for text in [
            "request.a".repeat(2).replacen("request", "!request", 1) + &"+1".repeat(64),
            format!("1{}", "-1".repeat(65)),
        ] {
            assert!(refused(&text).contains("operators"), "{text}");
        }
    }

    /// As deep as may be: parsed, evaluated and let go again with half of the stack that threads have. Builds without optimisation
    /// take a multiple of it.
    #[test]
    fn what_is_as_deep_as_may_be_has_room() {
        let open =
            |inner: &str, close: &str| format!("{}1{}", inner.repeat(MOST_STEPS), close.repeat(MOST_STEPS));
        let deep = [
            format!("request{}", ".a".repeat(MOST_STEPS)),
            format!("1{}", "+1".repeat(MOST_STEPS)),
            format!("true{}", "&&true".repeat(MOST_STEPS / 2)),
            format!("{}true", "!".repeat(MOST_STEPS)),
            format!("{}1", "true?1:".repeat(MOST_STEPS)),
            open("(", ")"),
            open("[", "]"),
        ];
        for text in deep {
            let run = move || match compile(&text) {
                Ok((program, _)) => drop(program.execute(&cel::Context::default())),
                // The parser has a bound of its own.
                Err(reason) => assert!(!reason.contains("operators"), "{reason}"),
            };
            let thread = std::thread::Builder::new()
                .stack_size(if cfg!(debug_assertions) { 16 << 20 } else { 1 << 20 })
                .spawn(run);
            thread.unwrap().join().unwrap();
        }
    }
}
