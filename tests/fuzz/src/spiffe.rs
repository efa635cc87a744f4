//! SPIFFE ids: what is taken for one says the same when it is taken apart and put together again.

use weft_certs::spiffe::{SpiffeId, TrustDomain};

/// Text of anybody.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text, "its parts are the whole");
    let domain: TrustDomain = id.trust_domain().parse().expect("a trust domain of an id is one");
    assert!(text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'%' | b'?' | b'#' | b'@' | b'\\')));
    assert!(!id.path().split('/').skip(1).any(|s| matches!(s, "" | "." | "..")), "no odd segment: {text}");
    if let Some((namespace, account)) = id.workload() {
        assert!(!namespace.is_empty() && !account.is_empty(), "nobody is the account of nothing: {text}");
        assert_eq!(
            domain.workload(namespace, account).as_ref(),
            Ok(&id),
            "the name of a workload is its own"
        );
    }
}
