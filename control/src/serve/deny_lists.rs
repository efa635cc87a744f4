//! Lists of addresses (IPDenyList): read here, from files and URLs, and pushed to the gateways that they are for.
//!
//! A state of the mesh goes out when each of its lists has been tried at least once. A file is read when it has changed, a URL
//! from time to time; what cannot be read, or has a bad line, leaves the list that was last good. The last good list of a URL
//! is kept in the state directory as well, for a start while nobody serves it. A list that was never good denies nobody: it
//! is told, and counted (`weft_deny_list_stale`).

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::Method;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ca::http::Client;
use crate::model::{AddressSet, DenyLists, ListSource, World};
use crate::serve::reading::Reads;

/// How long after a failure a URL is read again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest list that is read, in bytes.
const LONGEST: usize = 32 * 1024 * 1024;

/// What says that a file is another one than before: its place, length and time of change.
type Stamp = (u64, u64, i64, i64);

/// A list's state.
#[derive(Debug)]
struct List {
    /// What was last good.
    good: Option<Arc<AddressSet>>,
    /// The file that was last read, good or not.
    stamp: Option<Stamp>,
    /// When it is looked at next, and how often.
    due: Instant,
    every: Duration,
    /// How long the next failure is waited after.
    pause: Duration,
    /// Why it was last refused, if it was.
    error: Option<String>,
    /// It has been read, or has failed.
    tried: bool,
    /// It is being read.
    asked: bool,
}

/// What became of a reading: nothing new, a list, or a failure.
type Reading = Result<Option<Arc<AddressSet>>, Failure>;

/// A reading, with the stamp of the file that was read.
type Answer = (ListSource, Option<Stamp>, Reading);

/// Why nothing was read.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    /// What was kept of an earlier reading, if there was no other.
    kept: Option<Arc<AddressSet>>,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { error: error.into(), kept: None }
    }
}

/// Reads lists and keeps the last good ones.
#[derive(Debug)]
pub struct ListReader {
    roots: Option<PathBuf>,
    kept: Option<PathBuf>,
    lists: HashMap<ListSource, List>,
    under_way: JoinSet<Answer>,
}

impl ListReader {
    /// A reader. TLS is checked by `roots`, or the system's; lists of URLs are kept below `state`.
    pub fn new(roots: Option<PathBuf>, state: Option<&Path>) -> Self {
        let kept = state.map(|directory| directory.join("deny-lists"));
        Self { roots, kept, lists: HashMap::new(), under_way: JoinSet::new() }
    }
}

impl Reads for ListReader {
    type Answer = Answer;

    fn ask(&mut self, world: &World) {
        let mut wanted: HashMap<ListSource, Duration> = HashMap::new();
        for object in world.ip_deny_lists() {
            let every = object.refresh_interval();
            let least = wanted.entry(object.list_source()).or_insert(every);
            *least = every.min(*least);
        }
        self.lists.retain(|source, _| {
            let stays = wanted.contains_key(source);
            if !stays {
                metrics::gauge!("weft_deny_list_entries", "source" => source.to_string()).set(0.0);
                metrics::gauge!("weft_deny_list_stale", "source" => source.to_string()).set(0.0);
            }
            stays
        });
        let now = Instant::now();
        for (source, every) in wanted {
            let list = self.lists.entry(source.clone()).or_insert_with(|| List {
                good: None,
                stamp: None,
                due: now,
                every,
                pause: RETRY.0,
                error: None,
                tried: false,
                asked: false,
            });
            list.every = every;
            list.due = list.due.min(now + every);
            if list.asked || list.due > now {
                continue;
            }
            list.asked = true;
            let (roots, kept, known) = (self.roots.clone(), self.kept.clone(), list.stamp);
            let first = list.good.is_none();
            self.under_way.spawn(async move {
                match &source {
                    ListSource::File(path) => {
                        let path = path.clone();
                        let read = tokio::task::spawn_blocking(move || file(&path, known)).await;
                        let (stamp, list) = read.unwrap_or_else(|e| (known, Err(e.into())));
                        (source, stamp, list)
                    }
                    ListSource::Url(_) => {
                        let list = url(&source, roots, kept, first).await;
                        (source, None, list)
                    }
                }
            });
        }
    }

    fn under_way(&mut self) -> &mut JoinSet<Answer> {
        &mut self.under_way
    }

    fn due(&self) -> Option<Instant> {
        self.lists.values().filter(|list| !list.asked).map(|list| list.due).min()
    }

    fn is_settled(&self) -> bool {
        self.lists.values().all(|list| list.tried)
    }

    fn take(&mut self, (source, stamp, answer): Answer) {
        // It may not be wanted any more.
        let Some(list) = self.lists.get_mut(&source) else { return };
        (list.asked, list.tried, list.stamp) = (false, true, stamp);
        let label = source.to_string();
        let (entries, stale) = (
            metrics::gauge!("weft_deny_list_entries", "source" => label.clone()),
            metrics::gauge!("weft_deny_list_stale", "source" => label.clone()),
        );
        let count = |result: &'static str| {
            metrics::counter!("weft_deny_list_reads", "source" => label.clone(), "result" => result)
                .increment(1);
        };
        match answer {
            Ok(new) => {
                list.due = Instant::now() + list.every;
                list.pause = RETRY.0;
                let Some(new) = new else { return };
                count("success");
                list.error = None;
                stale.set(0.0);
                entries.set(new.nets().len() as f64);
                if list.good.as_ref() != Some(&new) {
                    tracing::info!(%source, networks = new.nets().len(), "a list of denied addresses was read");
                    list.good = Some(new);
                }
            }
            Err(Failure { error, kept }) => {
                count("failure");
                stale.set(1.0);
                let error = format!("{error:#}");
                let known = list.error.replace(error.clone());
                if list.good.is_none()
                    && let Some(kept) = kept
                {
                    let networks = kept.nets().len();
                    tracing::warn!(%source, error, networks, "a list of denied addresses is taken from the state directory");
                    entries.set(networks as f64);
                    list.good = Some(kept);
                }
                match &list.good {
                    // It was said.
                    _ if known.as_ref() == Some(&error) => {}
                    Some(good) => {
                        let networks = good.nets().len();
                        tracing::warn!(%source, error, networks, "a list of denied addresses is refused; the last good one stays");
                    }
                    None => {
                        tracing::error!(%source, error, "a list of denied addresses is refused, and denies nobody")
                    }
                }
                let again = if stamp.is_some() { list.every } else { list.pause.min(list.every) };
                list.due = Instant::now() + again;
                list.pause = (list.pause * 2).min(RETRY.1);
            }
        }
    }

    async fn world(&mut self, world: &World) -> World {
        if self.lists.is_empty() {
            return world.clone();
        }
        let known = |(source, list): (&ListSource, &List)| Some((source.clone(), list.good.clone()?));
        let known: BTreeMap<_, _> = self.lists.iter().filter_map(known).collect();
        world.with_deny_lists(Arc::new(DenyLists::new(known)))
    }
}

/// Reads a file if it is another one than at `known`. The stamp is that of what was read, good or not: it is looked at again
/// when it has changed.
fn file(path: &Path, known: Option<Stamp>) -> (Option<Stamp>, Reading) {
    let stamp = || -> anyhow::Result<Stamp> {
        let data = std::fs::metadata(path)?;
        anyhow::ensure!(data.is_file(), "is no file");
        anyhow::ensure!(data.len() <= LONGEST as u64, "has more than {LONGEST} bytes");
        Ok((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
    };
    let before = match stamp() {
        Ok(stamp) => stamp,
        Err(error) => return (None, Err(error.into())),
    };
    if known == Some(before) {
        return (known, Ok(None));
    }
    let list = std::fs::read(path).map_err(anyhow::Error::from).and_then(|bytes| parse(&bytes));
    (Some(before), list.map(Some).map_err(Failure::from))
}

/// Reads a URL; at first, if that fails, what was kept of it.
async fn url(source: &ListSource, roots: Option<PathBuf>, kept: Option<PathBuf>, first: bool) -> Reading {
    let ListSource::Url(url) = source else { return Ok(None) };
    let kept = kept.map(|d| d.join(format!("{}.txt", weft_certs::digest::sha256_hex(url.as_bytes()))));
    let error = match fetch(source, url, roots, kept.clone()).await {
        Ok(list) => return Ok(Some(list)),
        Err(error) => error,
    };
    let Some(path) = kept.filter(|_| first) else { return Err(error.into()) };
    let kept = tokio::task::spawn_blocking(move || parse(&std::fs::read(path)?)).await;
    Err(Failure { error, kept: kept.ok().and_then(Result::ok) })
}

async fn fetch(
    source: &ListSource,
    url: &str,
    roots: Option<PathBuf>,
    kept: Option<PathBuf>,
) -> anyhow::Result<Arc<AddressSet>> {
    let at = url.find("://").map_or(0, |at| at + 3);
    let path = url[at..].find(['/', '?']).map_or(url.len(), |path| at + path);
    let client = Client::new(&url[..path], roots)?.with_longest(LONGEST);
    let answer = client.call(Method::GET, &url[path..], &[("accept", "text/plain, */*")], None).await;
    // Without the URL as it is written: it may have a key in it.
    let (status, body) = answer.map_err(|e| anyhow::anyhow!("{source}: {}", e.reason))?;
    anyhow::ensure!(status.is_success(), "{source} answers {status}");
    tokio::task::spawn_blocking(move || {
        let list = parse(&body)?;
        if let Some(path) = kept
            && let Err(error) = keep(&path, &body)
        {
            tracing::warn!(path = %path.display(), %error, "a list of denied addresses cannot be kept");
        }
        Ok(list)
    })
    .await?
}

fn parse(bytes: &[u8]) -> anyhow::Result<Arc<AddressSet>> {
    let text = std::str::from_utf8(bytes).context("it is no text in UTF-8")?;
    AddressSet::parse(text).map(Arc::new).map_err(anyhow::Error::msg)
}

/// Writes a file whole or not at all.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let new = path.with_extension("new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::ingest::load_str;

    fn world(source: &str) -> World {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: IPDenyList\nmetadata: {{name: t, namespace: n}}\n\
             spec: {{source: {source}, refreshInterval: 1h}}\n"
        );
        load_str("t.yaml", &text).into_result().unwrap()
    }

    fn nets(world: &World) -> String {
        let source = world.ip_deny_lists()[0].list_source();
        let list = world.deny_lists().of(&source);
        list.map_or("-".to_owned(), |l| {
            l.nets().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        })
    }

    /// Reads again although nothing is due yet.
    async fn again(reader: &mut ListReader, world: &World) -> String {
        reader.lists.values_mut().for_each(|list| list.due = Instant::now());
        nets(&reader.settle(world).await)
    }

    #[tokio::test]
    async fn a_file_is_read_when_it_changes_and_a_bad_one_leaves_the_last_good_list() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        let world = world(&format!("{{file: {}}}", path.display()));
        let mut reader = ListReader::new(None, None);
        assert_eq!(nets(&reader.settle(&world).await), "-", "a list that is not there denies nobody");
        let write = |text: &str| {
            let new = directory.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, &path).unwrap();
        };
        write("10.0.0.1\n");
        assert_eq!(again(&mut reader, &world).await, "10.0.0.1/32");
        write("10.0.0.1\n10.0.0.2\n");
        let first = reader.settle(&world).await;
        assert_eq!(again(&mut reader, &world).await, "10.0.0.1/32 10.0.0.2/32");
        let second = reader.settle(&world).await;
        assert_ne!(first.version(), second.version());
        assert_eq!(first.shape_version(), second.shape_version(), "nothing but gateways is made anew");
        for bad in ["10.0.0.3\nnonsense\n", "", "0.0.0.0/0\n"] {
            write(bad);
            assert_eq!(again(&mut reader, &world).await, "10.0.0.1/32 10.0.0.2/32", "{bad:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(again(&mut reader, &world).await, "10.0.0.1/32 10.0.0.2/32");
        write("# nobody any more\n");
        assert_eq!(again(&mut reader, &world).await, "");
    }

    /// Serves what it is told, or nothing.
    async fn feed(list: Arc<Mutex<Option<&'static str>>>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/drop.txt", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                let (status, body) = match *list.lock().unwrap() {
                    Some(body) => ("200 OK", body),
                    None => ("503 Service Unavailable", "10.9.9.9"),
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all((head + body).as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn a_url_that_is_down_leaves_the_last_good_list_also_after_a_restart() {
        let list = Arc::new(Mutex::new(None));
        let world = world(&format!("{{url: '{}'}}", feed(list.clone()).await));
        let state = tempfile::tempdir().unwrap();
        let mut reader = ListReader::new(None, Some(state.path()));
        assert_eq!(nets(&reader.settle(&world).await), "-");
        *list.lock().unwrap() = Some("192.0.2.0/24\n");
        assert_eq!(again(&mut reader, &world).await, "192.0.2.0/24");
        for bad in [None, Some("<html>"), Some("")] {
            *list.lock().unwrap() = bad;
            assert_eq!(again(&mut reader, &world).await, "192.0.2.0/24", "{bad:?}");
            // A start while nobody serves the list.
            let mut other = ListReader::new(None, Some(state.path()));
            assert_eq!(nets(&other.settle(&world).await), "192.0.2.0/24", "{bad:?}");
            let asked_again = other.lists.values().map(|l| l.due - Instant::now()).max().unwrap();
            assert!(asked_again <= RETRY.0 && other.lists.values().all(|l| l.error.is_some()), "{bad:?}");
            assert_eq!(nets(&ListReader::new(None, None).settle(&world).await), "-", "{bad:?}");
        }
    }
}
