//! The part of Go's templates that our chart is written in, so that `weft install` renders the same files as Helm does: there is
//! one source of what is installed. What is not known here is an error, never left out; `peers::helm` compares both.

mod functions;
mod parse;
mod run;

use std::collections::BTreeMap;

use anyhow::Context;
use serde_json::Value;

pub use functions::lay;
use parse::Node;

/// Parsed templates, and other files of the chart that they read.
#[derive(Debug, Default)]
pub struct Templates {
    files: BTreeMap<String, Vec<Node>>,
    named: BTreeMap<String, Vec<Node>>,
    texts: BTreeMap<String, String>,
}

impl Templates {
    /// Takes a template.
    ///
    /// # Errors
    /// It is not written in the part of the language that is known here; the message has file and line.
    pub fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let nodes = parse::parse(text, &mut self.named).with_context(|| name.to_owned())?;
        self.files.insert(name.to_owned(), nodes);
        Ok(())
    }

    /// Takes a file that templates read by `.Files.Get`.
    pub fn add_file(&mut self, name: &str, text: &str) {
        self.texts.insert(name.to_owned(), text.to_owned());
    }

    /// Renders a template that was taken.
    ///
    /// # Errors
    /// The template fails (by `fail`, too), or there is none of that name.
    pub fn render(&self, name: &str, context: &Value) -> anyhow::Result<String> {
        let nodes = self.files.get(name).with_context(|| format!("no template {name}"))?;
        let mut run = run::Run::new(self, context);
        run.nodes(nodes, context)?;
        Ok(run.out)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> anyhow::Result<String> {
        let mut templates = Templates::default();
        templates.add_file("f.yaml", "k: v\n");
        templates.add("t", text)?;
        let values = json!({"a": {"b": "x", "n": 2}, "list": ["p", "q"], "off": false, "empty": {}, "map": {"k2": 2, "k1": 1}});
        templates.render("t", &json!({"Values": values, "Release": {"Name": "r"}}))
    }

    #[test]
    fn it_says_what_gos_templates_say() {
        for (text, expected) in [
            ("a {{ .Values.a.b }} {{ .Release.Name | quote }}", "a x \"r\""),
            ("{{- /* nothing */ -}} x \n {{- .Values.a.n }}", "x2"),
            ("{{ if .Values.off }}1{{ else if .Values.empty }}2{{ else }}3{{ end }}", "3"),
            ("{{ if and .Values.a (not .Values.off) }}y{{ end }}", "y"),
            ("{{ range .Values.list }}{{ . }};{{ end }}", "p;q;"),
            ("{{ range $i, $v := .Values.list }}{{ $i }}{{ $v }}{{ $.Release.Name }}{{ end }}", "0pr1qr"),
            ("{{ range $k, $v := .Values.map }}{{ $k }}={{ $v }} {{ end }}", "k1=1 k2=2 "),
            ("{{ range .Values.none }}x{{ else }}none{{ end }}", "none"),
            ("{{ with .Values.a }}{{ .b }}{{ end }}", "x"),
            ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
            ("{{ define \"n\" }}<{{ .b }}>{{ end }}{{ include \"n\" .Values.a | indent 2 }}", "  <x>"),
            ("v:{{ toYaml .Values.map | nindent 2 }}", "v:\n  k1: 1\n  k2: 2"),
            ("{{ default \"d\" .Values.none }}{{ .Values.a.b | default \"d\" }}", "dx"),
            ("{{ printf \"%s-%d-%v\" \"a\" 3 true }}", "a-3-true"),
            ("{{ eq .Values.a.n 2 }}{{ ne \"a\" \"b\" }}{{ has \"p\" .Values.list }}", "truetruetrue"),
            ("{{ (.Files.Get \"f.yaml\" | fromYaml).k }}", "v"),
            (
                "{{ $m := mergeOverwrite (dict \"a\" (dict \"x\" 1 \"y\" 2)) (dict \"a\" (dict \"y\" 3)) }}{{ $m.a.x }}{{ $m.a.y }}",
                "13",
            ),
            ("{{ .Values.none }}|{{ .Values.none.deeper }}", "|"),
            ("{{ list \"a\" \"b\" | join \",\" }}{{ keys .Values.map | sortAlpha | join \"\" }}", "a,bk1k2"),
        ] {
            let found = render(text);
            assert_eq!(found.as_deref().map_err(|e| format!("{e:#}")), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_it_does_not_know_is_an_error_with_its_place() {
        for (text, words) in [
            ("a\n{{ frobnicate 1 }}", "frobnicate"),
            ("{{ if true }}", "end"),
            ("{{ end }}", "end"),
            ("{{ .Values.a.b", "}}"),
            ("{{ include \"none\" . }}", "none"),
            ("\n\n{{ fail \"no such profile\" }}", "no such profile"),
            ("{{ $y }}", "$y"),
            ("{{ template \"x\" }}", "template"),
            ("{{ printf \"%x\" 1 }}", "%x"),
        ] {
            let error = format!("{:#}", render(text).expect_err(text));
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
