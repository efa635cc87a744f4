//! Text to a tree.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::vec::IntoIter;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// A piece of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Text(String),
    Print(Expr),
    /// `:=`, or `=` to a variable that is there.
    Assign {
        name: String,
        new: bool,
        value: Expr,
    },
    If {
        cases: Vec<(Expr, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Range {
        names: Vec<String>,
        over: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        what: Expr,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// What gives a value.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Literal(Value),
    /// `.`, `$` or `$name`, and fields of it.
    Path {
        from: From,
        fields: Vec<String>,
    },
    /// A function or a method, its arguments, and its line.
    Call {
        name: String,
        arguments: Vec<Expr>,
        line: usize,
    },
    /// Fields of what is in brackets.
    Fields(Box<Expr>, Vec<String>),
}

/// Where a path begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    Dot,
    Root,
    Variable(String),
}

enum Piece {
    Text(String),
    Action { words: Vec<Word>, line: usize },
}

#[derive(Clone, Debug, PartialEq)]
enum Word {
    Value(Value),
    Path(String),
    Name(String),
    Sign(char),
    Assign,
}

/// Parses a template; what it defines by name goes to `named`.
pub(super) fn parse(text: &str, named: &mut BTreeMap<String, Vec<Node>>) -> anyhow::Result<Vec<Node>> {
    let mut pieces = cut(text)?.into_iter().peekable();
    let (nodes, end) = block(&mut pieces, named)?;
    ensure!(end.is_none(), "an {{{{ end }}}} or {{{{ else }}}} of nothing");
    Ok(nodes)
}

fn cut(text: &str) -> anyhow::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let line = 1 + text[..text.len() - after.len()].matches('\n').count();
        let mut before = if trim { before.trim_start() } else { before };
        let mut inner = after;
        if let Some(cut) = inner.strip_prefix("- ").or(inner.strip_prefix("-\n")) {
            (before, inner) = (before.trim_end(), cut);
        }
        pieces.push(Piece::Text(before.to_owned()));
        let at = || format!("line {line}");
        if let Some(comment) = inner.trim_start().strip_prefix("/*") {
            let (_, after) = comment.split_once("*/").with_context(at)?;
            let (end, after) = after.split_once("}}").with_context(at)?;
            (rest, trim) = (after, end.trim() == "-");
            continue;
        }
        let (words, after, cut) = words(inner).with_context(at)?;
        (rest, trim) = (after, cut);
        pieces.push(Piece::Action { words, line });
    }
    pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

/// The words of one action, what comes behind it, and whether white space there is cut.
fn words(text: &str) -> anyhow::Result<(Vec<Word>, &str, bool)> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        let spaced = rest.starts_with(char::is_whitespace);
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("}}") {
            return Ok((words, after, false));
        }
        if let (true, Some(after)) = (spaced, rest.strip_prefix("-}}")) {
            return Ok((words, after, true));
        }
        let Some(first) = rest.chars().next() else { bail!("a }}}} is missing") };
        if let Some(after) = rest.strip_prefix(":=") {
            words.push(Word::Assign);
            rest = after;
            continue;
        }
        let end = match first {
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let end = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    end
                });
                let end = end.context("a quotation mark is missing")? + 2;
                words.push(Word::Value(serde_json::from_str(&rest[..end])?));
                end
            }
            '`' => {
                let end = rest[1..].find('`').context("a ` is missing")?;
                words.push(Word::Value(rest[1..=end].into()));
                end + 2
            }
            '(' | ')' | '|' | ',' | '=' => {
                words.push(Word::Sign(first));
                1
            }
            _ => {
                let end =
                    rest.find(|c: char| c.is_whitespace() || "()|,=}\":`".contains(c)).unwrap_or(rest.len());
                ensure!(end > 0, "{first:?} cannot stand here");
                let word = &rest[..end];
                words.push(match word {
                    "true" | "false" => Word::Value((word == "true").into()),
                    "nil" => Word::Value(Value::Null),
                    _ if first.is_ascii_digit() || (first == '-' && word.len() > 1) => {
                        Word::Value(serde_json::from_str(word)?)
                    }
                    _ if first == '.' || first == '$' => Word::Path(word.to_owned()),
                    _ => Word::Name(word.to_owned()),
                });
                end
            }
        };
        rest = &rest[end..];
    }
}

/// What ended a block: the words of its `end` or `else`, and their line.
type End = Option<(Vec<Word>, usize)>;

fn block(
    pieces: &mut Peekable<IntoIter<Piece>>,
    named: &mut BTreeMap<String, Vec<Node>>,
) -> anyhow::Result<(Vec<Node>, End)> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let (words, line) = match piece {
            Piece::Text(text) => {
                if !text.is_empty() {
                    nodes.push(Node::Text(text));
                }
                continue;
            }
            Piece::Action { words, line } => (words, line),
        };
        let at = || format!("line {line}");
        let keyword = match words.first() {
            Some(Word::Name(name)) => name.clone(),
            _ => String::new(),
        };
        match keyword.as_str() {
            "end" | "else" => return Ok((nodes, Some((words, line)))),
            "define" => {
                let Some(Word::Value(Value::String(name))) = words.get(1) else {
                    bail!("line {line}: define wants a name")
                };
                let (body, _) = closed(pieces, named, false).with_context(at)?;
                named.insert(name.clone(), body);
            }
            "if" => {
                let mut cases = Vec::new();
                let mut condition = expression(&words[1..], line)?;
                let otherwise = loop {
                    let (body, end) = block(pieces, named)?;
                    cases.push((condition, body));
                    match end {
                        Some((words, _)) if words == [Word::Name("end".into())] => break Vec::new(),
                        Some((words, _)) if words.len() == 1 => {
                            break closed(pieces, named, false).with_context(at)?.0;
                        }
                        Some((words, line)) if words[1] == Word::Name("if".into()) => {
                            condition = expression(&words[2..], line)?;
                        }
                        _ => bail!("line {line}: this if has no end"),
                    }
                };
                nodes.push(Node::If { cases, otherwise });
            }
            "range" => {
                let assign = words.iter().position(|word| *word == Word::Assign);
                let names = words[1..assign.unwrap_or(1)].iter().filter_map(|word| match word {
                    Word::Path(name) => Some(name.clone()),
                    _ => None,
                });
                let names = names.collect();
                let over = expression(&words[assign.unwrap_or(0) + 1..], line)?;
                let (body, otherwise) = closed(pieces, named, true).with_context(at)?;
                nodes.push(Node::Range { names, over, body, otherwise });
            }
            "with" => {
                let what = expression(&words[1..], line)?;
                let (body, otherwise) = closed(pieces, named, true).with_context(at)?;
                nodes.push(Node::With { what, body, otherwise });
            }
            "template" | "block" | "break" | "continue" => bail!("line {line}: {keyword} is not known here"),
            _ => match words.as_slice() {
                [Word::Path(name), sign @ (Word::Assign | Word::Sign('=')), value @ ..] => {
                    let (name, new) = (name.clone(), *sign == Word::Assign);
                    nodes.push(Node::Assign { name, new, value: expression(value, line)? });
                }
                _ => nodes.push(Node::Print(expression(&words, line)?)),
            },
        }
    }
    Ok((nodes, None))
}

/// A block to its `end`, and what stands behind its `else`, where it may have one.
fn closed(
    pieces: &mut Peekable<IntoIter<Piece>>,
    named: &mut BTreeMap<String, Vec<Node>>,
    may_else: bool,
) -> anyhow::Result<(Vec<Node>, Vec<Node>)> {
    let (body, end) = block(pieces, named)?;
    match end {
        Some((words, _)) if words == [Word::Name("end".into())] => Ok((body, Vec::new())),
        Some((words, _)) if may_else && words == [Word::Name("else".into())] => {
            Ok((body, closed(pieces, named, false)?.0))
        }
        _ => bail!("its end is missing"),
    }
}

fn expression(words: &[Word], line: usize) -> anyhow::Result<Expr> {
    let words: Vec<Word> = words.to_vec();
    let mut words = words.into_iter().peekable();
    let found = pipeline(&mut words, line).with_context(|| format!("line {line}"))?;
    ensure!(words.next().is_none(), "line {line}: a bracket too many");
    Ok(found)
}

fn pipeline(words: &mut Peekable<IntoIter<Word>>, line: usize) -> anyhow::Result<Expr> {
    let mut value = command(words, line)?;
    while words.next_if_eq(&Word::Sign('|')).is_some() {
        match command(words, line)? {
            Expr::Call { name, mut arguments, line } => {
                arguments.push(value);
                value = Expr::Call { name, arguments, line };
            }
            _ => bail!("behind | stands a function"),
        }
    }
    Ok(value)
}

fn command(words: &mut Peekable<IntoIter<Word>>, line: usize) -> anyhow::Result<Expr> {
    if let Some(Word::Name(name)) = words.next_if(|word| matches!(word, Word::Name(_))) {
        return Ok(Expr::Call { name, arguments: arguments(words, line)?, line });
    }
    let first = term(words, line)?.context("something is missing")?;
    let arguments = arguments(words, line)?;
    match first {
        value if arguments.is_empty() => Ok(value),
        // The one method that there is.
        Expr::Path { fields, .. } if fields == ["Files", "Get"] => {
            Ok(Expr::Call { name: "Files.Get".to_owned(), arguments, line })
        }
        _ => bail!("only a function has arguments"),
    }
}

fn arguments(words: &mut Peekable<IntoIter<Word>>, line: usize) -> anyhow::Result<Vec<Expr>> {
    let mut arguments = Vec::new();
    while let Some(value) = term(words, line)? {
        arguments.push(value);
    }
    Ok(arguments)
}

fn term(words: &mut Peekable<IntoIter<Word>>, line: usize) -> anyhow::Result<Option<Expr>> {
    let split =
        |text: &str| text.split('.').filter(|field| !field.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    Ok(Some(match words.peek() {
        None | Some(Word::Sign('|' | ')')) => return Ok(None),
        Some(Word::Sign('(')) => {
            words.next();
            let inner = pipeline(words, line)?;
            ensure!(words.next() == Some(Word::Sign(')')), "a bracket is missing");
            match words.peek() {
                // It touched the bracket: nothing else begins with a dot and a name there in our files.
                Some(Word::Path(path)) if path.starts_with('.') && path.len() > 1 => {
                    let fields = split(path);
                    words.next();
                    Expr::Fields(Box::new(inner), fields)
                }
                _ => inner,
            }
        }
        _ => match words.next() {
            Some(Word::Value(value)) => Expr::Literal(value),
            Some(Word::Path(path)) => {
                let (from, rest) = match path.strip_prefix('$') {
                    None => (From::Dot, path.as_str()),
                    Some(rest) if rest.is_empty() || rest.starts_with('.') => (From::Root, rest),
                    Some(rest) => {
                        let end = rest.find('.').unwrap_or(rest.len());
                        (From::Variable(format!("${}", &rest[..end])), &rest[end..])
                    }
                };
                Expr::Path { from, fields: split(rest) }
            }
            Some(Word::Name(name)) => Expr::Call { name, arguments: Vec::new(), line },
            other => bail!("{other:?} cannot stand here"),
        },
    }))
}
