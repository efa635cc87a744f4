//! Path templates (`envoy.path.match.uri_template`, `envoy.path.rewrite.uri_template`): `/a/{name}/*/{rest=**}`.
//!
//! `*` stands for one segment or a part of it, `**` for any number of segments at the end, `{name}` and `{name=pattern}`
//! give what they stand for a name that a rewrite may use.

use bytes::Bytes;
use regex::bytes::Regex;

use super::text::full_regex;

/// What a segment may consist of, as in a character class.
const SEGMENT: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=";

/// A compiled template.
#[derive(Clone, Debug)]
pub struct Template {
    regex: Regex,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn new(template: &str) -> Result<Self, String> {
        let mut rest = template.strip_prefix('/').ok_or("a path template begins with a slash")?;
        let (mut regex, mut names, mut deep) = (String::from("/"), Vec::new(), false);
        while let Some(first) = rest.chars().next() {
            if deep && (first == '*' || first == '{') {
                return Err("nothing but text may follow **".to_owned());
            }
            if let Some(after) = rest.strip_prefix('{') {
                let end = after.find('}').ok_or("a { is not closed")?;
                let (name, pattern) = after[..end].split_once('=').unwrap_or((&after[..end], "*"));
                if !is_name(name) {
                    return Err(format!("{name:?} is no name of a variable"));
                }
                if names.contains(&name) {
                    return Err(format!("the variable {name} is there twice"));
                }
                names.push(name);
                deep = pattern.contains("**");
                regex.push_str(&format!("(?P<{name}>{})", inner(pattern)?));
                rest = &after[end + 1..];
            } else if rest.starts_with('*') {
                let stars = if rest.starts_with("**") { "**" } else { "*" };
                deep = stars == "**";
                regex.push_str(&glob(stars));
                rest = &rest[stars.len()..];
            } else {
                let end = rest.find(['{', '*']).unwrap_or(rest.len());
                if let Some(bad) = rest[..end].chars().find(|c| *c == '}' || c.is_ascii_control()) {
                    return Err(format!("{bad:?} may not stand in a path template"));
                }
                regex.push_str(&regex_lite_escape(&rest[..end]));
                rest = &rest[end..];
            }
        }
        full_regex(&regex).map(|regex| Self { regex })
    }

    /// Whether a path (without its query) matches.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(path)
    }

    fn has(&self, name: &str) -> bool {
        self.regex.capture_names().flatten().any(|n| n == name)
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 16
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn glob(stars: &str) -> String {
    match stars {
        "**" => format!("[{SEGMENT}/]*"),
        _ => format!("[{SEGMENT}]+"),
    }
}

/// The pattern of a variable: text, `*` and `**` between slashes.
fn inner(pattern: &str) -> Result<String, String> {
    if pattern.is_empty() || pattern.contains(['{', '}']) {
        return Err(format!("{pattern:?} is no pattern of a variable"));
    }
    let segments = pattern.split('/').map(|segment| match segment {
        "*" | "**" => Ok(glob(segment)),
        text if text.contains('*') => Err(format!("{text:?} mixes text and *")),
        text => Ok(regex_lite_escape(text)),
    });
    Ok(segments.collect::<Result<Vec<_>, _>>()?.join("/"))
}

fn regex_lite_escape(text: &str) -> String {
    let special = |c: char| c.is_ascii_punctuation() && !matches!(c, '/' | '_' | '%');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// A rewrite by the variables of a template.
#[derive(Clone, Debug)]
pub struct TemplateRewrite {
    template: Template,
    /// Text, and names of variables.
    pieces: Vec<(String, Option<String>)>,
}

impl TemplateRewrite {
    /// A rewrite of paths that `template` matches.
    ///
    /// # Errors
    /// What is wrong in it.
    pub fn new(rewrite: &str, template: &Template) -> Result<Self, String> {
        if !rewrite.starts_with('/') {
            return Err("the new path must begin with a slash".to_owned());
        }
        let mut pieces = Vec::new();
        let mut rest = rewrite;
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("a { is not closed")?;
            if !template.has(name) {
                return Err(format!("the matched template has no variable {name}"));
            }
            pieces.push((text.to_owned(), Some(name.to_owned())));
            rest = after;
        }
        if rest.contains('}') || pieces.iter().any(|(text, _)| text.contains('}')) {
            return Err("a } has no {".to_owned());
        }
        pieces.push((rest.to_owned(), None));
        Ok(Self { template: template.clone(), pieces })
    }

    /// The new path; none if the path is not one of the template's.
    pub fn apply(&self, path: &[u8]) -> Option<Bytes> {
        let captures = self.template.regex.captures(path)?;
        let mut out = Vec::with_capacity(path.len());
        for (text, name) in &self.pieces {
            out.extend_from_slice(text.as_bytes());
            if let Some(value) = name.as_ref().and_then(|n| captures.name(n)) {
                out.extend_from_slice(value.as_bytes());
            }
        }
        Some(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_segments_and_give_them_names() {
        let cases = [
            ("/a/{x}/c", "/a/b/c", true),
            ("/a/{x}/c", "/a/b/d/c", false),
            ("/a/*/c", "/a//c", false),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/b", false),
            ("/**/end", "/a/b/end", true),
            ("/**/end", "/end", false),
            ("/{x=a/*}/{y=**}", "/a/1/b/c", true),
            ("/v/*.m3u8", "/v/1.m3u8", true),
            ("/v/*.m3u8", "/v/1xm3u8", false),
            ("/v/**.m3u8", "/v/1/2.m3u8", true),
        ];
        for (template, path, expected) in cases {
            assert_eq!(
                Template::new(template).unwrap().matches(path.as_bytes()),
                expected,
                "{template} {path}"
            );
        }
        for bad in ["a", "/{x", "/{}", "/{1}", "/{x}/{x}", "/**/*", "/**/{a}", "/}", "/{x=a*}"] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
        let template = Template::new("/{x=a/*}/{y=**}").unwrap();
        let rewrite = TemplateRewrite::new("/new/{y}/of/{x}", &template).unwrap();
        assert_eq!(rewrite.apply(b"/a/1/b/c").unwrap(), "/new/b/c/of/a/1");
        assert!(TemplateRewrite::new("/{z}", &template).is_err() && rewrite.apply(b"/b").is_none());
    }
}
