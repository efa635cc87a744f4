//! IPDenyList: addresses whose connections gateways refuse, by a list that somebody else keeps (weft.dev).

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::meta::Object;
use super::values::{Labels, Timespan, WorkloadSelector};

/// How often a file is looked at, and a URL read, when the object does not say.
const REFRESH: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(600));
/// The most networks that a list may have: what a gateway still takes in one piece.
pub const MOST: usize = 500_000;
/// So many bad lines are shown.
const SHOWN: usize = 3;

/// The specification of an IPDenyList.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IpDenyList {
    /// Gateways to which it applies; absent for all of the namespace, or of the mesh in the root namespace.
    pub selector: Option<WorkloadSelector>,
    /// Where the list is.
    pub source: DenySource,
    /// How often it is read again.
    pub refresh_interval: Option<Timespan>,
}

/// Where a list is: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DenySource {
    /// A file; a relative path is below the directory of the object's own file.
    pub file: String,
    /// A URL of http or https.
    pub url: String,
}

/// A list's place, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListSource {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(String),
}

impl fmt::Display for ListSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // What comes before the host or in the query may be a key of the feed's customer.
            Self::Url(url) => {
                let (url, query) = url.split_once('?').map_or((&**url, ""), |(url, _)| (url, "?…"));
                let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
                let authority = rest.split('/').next().unwrap_or_default();
                let user = authority.rfind('@').map_or(0, |at| at + 1);
                write!(f, "{scheme}://{}{query}", &rest[user..])
            }
        }
    }
}

impl Object<IpDenyList> {
    /// Where the list is.
    pub fn list_source(&self) -> ListSource {
        let source = &self.spec.source;
        if source.file.is_empty() {
            return ListSource::Url(source.url.clone());
        }
        let beside = std::path::Path::new(&*self.meta.source.file).parent();
        ListSource::File(beside.unwrap_or_else(|| "".as_ref()).join(&source.file))
    }

    /// How often it is read again.
    pub fn refresh_interval(&self) -> Duration {
        let default = if self.spec.source.file.is_empty() { REFRESH.1 } else { REFRESH.0 };
        self.spec.refresh_interval.map_or(default, Timespan::get)
    }
}

impl IpDenyList {
    /// Whether it applies to a gateway with these labels, as far as its selector says.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_none_or(|selector| selector.selects(labels))
    }
}

/// What a list says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    nets: Vec<IpNet>,
    version: u64,
}

impl AddressSet {
    /// Reads a list: an address or a network (CIDR) a line, comments after `#` or `;`. Networks that others contain, and
    /// neighbours that make up one, are joined.
    ///
    /// # Errors
    /// What is wrong, and in which line; nothing of such a list counts.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty; a list that is meant to name nobody has a comment".to_owned());
        }
        let (mut nets, mut wrong, mut count) = (Vec::new(), Vec::new(), 0);
        for (line, number) in text.lines().zip(1..) {
            let entry = line.split(['#', ';']).next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            match net(entry) {
                Ok(net) => nets.push(net),
                Err(why) => {
                    count += 1;
                    if wrong.len() < SHOWN {
                        // What is no list at all may have long lines.
                        let entry: String = entry.chars().take(60).collect();
                        wrong.push(format!("line {number}: {entry:?} {why}"));
                    }
                }
            }
        }
        if count > wrong.len() {
            wrong.push(format!("and {} more", count - wrong.len()));
        }
        if count > 0 {
            return Err(wrong.join("; "));
        }
        let nets = IpNet::aggregate(&nets);
        if nets.len() > MOST {
            return Err(format!("it has {} networks; more than {MOST} are not taken", nets.len()));
        }
        let mut hasher = DefaultHasher::new();
        nets.hash(&mut hasher);
        Ok(Self { nets, version: hasher.finish() })
    }

    /// Hash of its networks.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Its networks, none within another.
    pub fn nets(&self) -> &[IpNet] {
        &self.nets
    }
}

fn net(entry: &str) -> Result<IpNet, &'static str> {
    let net = match entry.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => entry.parse::<IpNet>().map_err(|_| "is neither an address nor a network")?,
    };
    // An IPv4 address that is written as one of IPv6 is the same client.
    let mapped = match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => {
            v6.addr().to_ipv4_mapped().map(|a| (a, v6.prefix_len() - 96))
        }
        _ => None,
    };
    let net = match mapped.map(|(address, length)| Ipv4Net::new(address, length)) {
        Some(Ok(v4)) => IpNet::V4(v4),
        _ => net,
    };
    match net.prefix_len() {
        // A slip of the list's keeper would shut everybody out.
        0 => Err("is everybody"),
        _ => Ok(net.trunc()),
    }
}

/// What the lists said when they were last good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyLists {
    known: BTreeMap<ListSource, Arc<AddressSet>>,
    version: u64,
}

impl DenyLists {
    /// What is known.
    pub fn new(known: BTreeMap<ListSource, Arc<AddressSet>>) -> Self {
        let mut hasher = DefaultHasher::new();
        known.iter().for_each(|(source, set)| (source, set.version()).hash(&mut hasher));
        Self { known, version: hasher.finish() }
    }

    /// The list of a source; none if it was never good.
    pub fn of(&self, source: &ListSource) -> Option<&Arc<AddressSet>> {
        self.known.get(source)
    }

    /// Hash of everything in it; 0 without any.
    pub fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<String> {
        AddressSet::parse(text).unwrap().nets().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_has_addresses_networks_and_comments() {
        let text = "# feed\n\n192.0.2.7\r\n198.51.100.0/24 ; SBL1\n 2001:db8::/32#x\n10.1.2.3/8\n";
        assert_eq!(nets(text), ["10.0.0.0/8", "192.0.2.7/32", "198.51.100.0/24", "2001:db8::/32"]);
        assert_eq!(nets("# nobody\n"), [""; 0]);
        assert_eq!(nets("::ffff:192.0.2.0/120\n"), ["192.0.2.0/24"]);
    }

    #[test]
    fn what_is_within_another_or_makes_one_is_joined() {
        assert_eq!(nets("10.0.0.1\n10.0.0.0/24\n10.0.0.9/32"), ["10.0.0.0/24"]);
        assert_eq!(nets("10.0.1.0/24\n10.0.0.0/24"), ["10.0.0.0/23"]);
    }

    #[test]
    fn a_bad_line_refuses_the_list_and_is_named() {
        for (text, words) in [
            ("", "it is empty"),
            ("10.0.0.1\n# c\n10.0.0.256\n", "line 3: \"10.0.0.256\" is neither"),
            ("10.0.0.0/33", "line 1"),
            ("example.com", "line 1"),
            ("0.0.0.0/0", "is everybody"),
            ("::/0", "is everybody"),
            ("::ffff:0.0.0.0/96", "is everybody"),
            ("<html>\n<body>\n<p>\n<b>\n<i>", "and 2 more"),
        ] {
            let error = AddressSet::parse(text).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_url_is_told_without_what_may_be_a_key() {
        for (url, told) in [
            ("https://a.example/drop.txt", "https://a.example/drop.txt"),
            (
                "https://me:secret@a.example:8443/drop@1.txt?key=secret&x",
                "https://a.example:8443/drop@1.txt?…",
            ),
            ("http://a.example", "http://a.example"),
        ] {
            assert_eq!(ListSource::Url(url.to_owned()).to_string(), told);
        }
    }

    #[test]
    fn a_file_is_beside_the_object_that_names_it() {
        let world = crate::ingest::load_str(
            "/etc/mesh/lists.yaml",
            "apiVersion: weft.dev/v1alpha1\nkind: IPDenyList\nmetadata: {name: a}\nspec: {source: {file: feeds/a.txt}}",
        );
        let world = world.into_result().unwrap();
        assert_eq!(world.ip_deny_lists()[0].list_source(), ListSource::File("/etc/mesh/feeds/a.txt".into()));
    }
}
