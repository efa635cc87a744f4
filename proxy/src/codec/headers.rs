//! Header fields in the order they were received.
//!
//! A flat list: requests carry ten to thirty fields, for which a scan that compares interned names beats hashing, and
//! order and duplicates survive as they do in Envoy's header map. Values are slices of the read buffer where possible.

pub use http::{HeaderName, HeaderValue};

/// Header fields, names lower-case, in wire order; pseudo-header fields are never in here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Headers {
    /// An empty list; allocates nothing.
    pub const fn new() -> Self {
        Self { fields: Vec::new() }
    }

    /// An empty list with room for `n` fields.
    pub fn with_capacity(n: usize) -> Self {
        Self { fields: Vec::with_capacity(n) }
    }

    /// The number of fields, duplicates counted.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The first value of `name`.
    pub fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The first value of `name`, as text where it is visible ASCII.
    pub fn get_str(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(|v| v.to_str().ok())
    }

    /// Every value of `name`, in order.
    pub fn get_all<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a HeaderValue> + 'a {
        self.fields.iter().filter(move |(n, _)| n == name).map(|(_, v)| v)
    }

    /// Whether `name` is there.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.fields.iter().any(|(n, _)| n == name)
    }

    /// Adds a field at the end, keeping those of the same name.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.fields.push((name, value));
    }

    /// Sets `name` to one value: in place of its first field (the others go), else at the end.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        match self.fields.iter().position(|(n, _)| *n == name) {
            None => self.fields.push((name, value)),
            Some(first) => {
                let mut at = 0;
                self.fields.retain(|(n, _)| {
                    at += 1;
                    at - 1 <= first || *n != name
                });
                self.fields[first].1 = value;
            }
        }
    }

    /// Removes every field of `name`; says whether there was one.
    pub fn remove(&mut self, name: &HeaderName) -> bool {
        let before = self.fields.len();
        self.fields.retain(|(n, _)| n != name);
        before != self.fields.len()
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.fields.retain(|(n, v)| keep(n, v));
    }

    /// The fields in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&HeaderName, &HeaderValue)> + '_ {
        self.fields.iter().map(|(n, v)| (n, v))
    }
}

impl IntoIterator for Headers {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<(HeaderName, HeaderValue)>;
    fn into_iter(self) -> Self::IntoIter {
        self.fields.into_iter()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Headers {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        Self { fields: fields.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(fields: &[(&'static str, &'static str)]) -> Headers {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn set_replaces_the_first_field_and_drops_its_duplicates() {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]);
        headers.set(HeaderName::from_static("a"), HeaderValue::from_static("9"));
        assert_eq!(headers, list(&[("a", "9"), ("b", "2"), ("c", "4")]));
        headers.set(HeaderName::from_static("d"), HeaderValue::from_static("5"));
        assert_eq!(headers, list(&[("a", "9"), ("b", "2"), ("c", "4"), ("d", "5")]));
    }

    #[test]
    fn remove_takes_every_duplicate() {
        let mut headers = list(&[("a", "1"), ("b", "2"), ("a", "3")]);
        assert!(headers.remove(&HeaderName::from_static("a")));
        assert!(!headers.remove(&HeaderName::from_static("a")));
        assert_eq!(headers, list(&[("b", "2")]));
    }
}
