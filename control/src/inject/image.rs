//! The images that manifests name (`deploy/images` builds them).

/// The proxy's, of this version.
pub(super) const IMAGE: &str = concat!("weft/proxy:", env!("CARGO_PKG_VERSION"));

/// Another image in the place of one: a whole reference, or a name (and tag) alone, which stays in the same registry.
pub(super) fn replaced(image: &str, by: &str) -> String {
    if by.contains('/') {
        return by.to_owned();
    }
    let hub = image.rsplit_once('/').map(|(hub, _)| hub);
    let last = image.rsplit('/').next().unwrap_or(image);
    let tag = last.split_once([':', '@']).map(|(name, _)| &last[name.len()..]);
    let by = if by.contains(':') { by.to_owned() } else { format!("{by}{}", tag.unwrap_or_default()) };
    hub.map_or(by.clone(), |hub| format!("{hub}/{by}"))
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_name_alone_stays_in_its_registry() {
        assert_eq!(replaced("r.io:5000/weft/proxy:1", "other"), "r.io:5000/weft/other:1");
        assert_eq!(replaced("r.io/weft/proxy:1", "proxy:2"), "r.io/weft/proxy:2");
        assert_eq!(replaced("r.io/weft/proxy:1", "a.io/b/c@sha256:0"), "a.io/b/c@sha256:0");
        assert_eq!(replaced("proxy", "other"), "other");
    }
}
