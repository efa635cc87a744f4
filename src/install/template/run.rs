//! A tree to text.

use anyhow::{Context, bail};
use serde_json::Value;

use super::parse::{Expr, From, Node};
use super::{Templates, functions};

/// A template at work.
pub(super) struct Run<'a> {
    templates: &'a Templates,
    root: &'a Value,
    variables: Vec<(String, Value)>,
    pub(super) out: String,
}

impl<'a> Run<'a> {
    pub(super) fn new(templates: &'a Templates, root: &'a Value) -> Self {
        Self { templates, root, variables: Vec::new(), out: String::new() }
    }

    pub(super) fn nodes(&mut self, nodes: &[Node], dot: &Value) -> anyhow::Result<()> {
        // What a block declares ends with it.
        let known = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(known);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> anyhow::Result<()> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(what) => {
                let value = self.value(what, dot)?;
                self.out.push_str(&functions::text(&value));
            }
            Node::Assign { name, new: true, value } => {
                let value = self.value(value, dot)?;
                self.variables.push((name.clone(), value));
            }
            Node::Assign { name, new: false, value } => {
                let value = self.value(value, dot)?;
                let known = self.variables.iter_mut().rev().find(|(known, _)| known == name);
                known.with_context(|| format!("no variable {name}"))?.1 = value;
            }
            Node::If { cases, otherwise } => {
                for (condition, body) in cases {
                    if functions::truth(&self.value(condition, dot)?) {
                        return self.nodes(body, dot);
                    }
                }
                self.nodes(otherwise, dot)?;
            }
            Node::With { what, body, otherwise } => {
                let value = self.value(what, dot)?;
                if functions::truth(&value) {
                    self.nodes(body, &value)?;
                } else {
                    self.nodes(otherwise, dot)?;
                }
            }
            Node::Range { names, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match self.value(over, dot)? {
                    Value::Array(list) => list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
                    Value::Object(map) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                    Value::Null => Vec::new(),
                    other => bail!("range over {other}"),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (key, value) in items {
                    let known = self.variables.len();
                    match names.as_slice() {
                        [] => {}
                        [one] => self.variables.push((one.clone(), value.clone())),
                        [first, second, ..] => {
                            self.variables.push((first.clone(), key));
                            self.variables.push((second.clone(), value.clone()));
                        }
                    }
                    self.nodes(body, &value)?;
                    self.variables.truncate(known);
                }
            }
        }
        Ok(())
    }

    fn value(&mut self, expr: &Expr, dot: &Value) -> anyhow::Result<Value> {
        Ok(match expr {
            Expr::Literal(value) => value.clone(),
            Expr::Path { from, fields } => {
                let start = match from {
                    From::Dot => dot,
                    From::Root => self.root,
                    From::Variable(name) => {
                        let known = self.variables.iter().rev().find(|(known, _)| known == name);
                        &known.with_context(|| format!("no variable {name}"))?.1
                    }
                };
                fields_of(start, fields)
            }
            Expr::Fields(inner, fields) => fields_of(&self.value(inner, dot)?, fields),
            Expr::Call { name, arguments, line } => {
                self.call(name, arguments, dot).with_context(|| format!("line {line}: {name}"))?
            }
        })
    }

    fn call(&mut self, name: &str, arguments: &[Expr], dot: &Value) -> anyhow::Result<Value> {
        // These look at no more of their arguments than they need.
        if matches!(name, "and" | "or") {
            let mut last = Value::Null;
            for argument in arguments {
                last = self.value(argument, dot)?;
                if functions::truth(&last) == (name == "or") {
                    break;
                }
            }
            return Ok(last);
        }
        let values = arguments.iter().map(|one| self.value(one, dot)).collect::<anyhow::Result<Vec<_>>>()?;
        match (name, values.as_slice()) {
            ("include", [Value::String(name), context]) => {
                let nodes =
                    self.templates.named.get(name).with_context(|| format!("nothing defines {name}"))?;
                let mut inner = Run::new(self.templates, context);
                inner.nodes(nodes, context)?;
                Ok(inner.out.into())
            }
            ("Files.Get", [Value::String(name)]) => {
                Ok(self.templates.texts.get(name).cloned().unwrap_or_default().into())
            }
            _ => functions::call(name, values),
        }
    }
}

fn fields_of(value: &Value, fields: &[String]) -> Value {
    fields.iter().fold(value.clone(), |value, field| value.get(field).cloned().unwrap_or_default())
}
