//! Reads the directory again whenever it changes, and keeps the last good state when the new one is refused.
//!
//! The file system's notifications only wake it up; what counts is whether files look different, so editors that replace
//! files, symbolic links that are swapped (as Kubernetes does with mounted ConfigMaps) and file systems without
//! notifications all work. A change is read once the directory has been still for a moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::Watcher as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_events::{Event, Kind, Outcome, Severity, emit};

use super::diagnostic::{Diagnostic, Severity as Grade};
use super::document::Skipped;
use super::load::LoadOutcome;
use super::source::Source;
use crate::model::{Change, World};

/// How long the directory must be still before it is read.
const QUIET: Duration = Duration::from_millis(100);
/// A file that just became empty is probably being written: wait longer.
const QUIET_EMPTIED: Duration = Duration::from_secs(1);
/// A directory that is never still is read at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often to look without being woken.
const POLL: Duration = Duration::from_secs(2);

/// What the directory says: the last good World, and what there was to say about the latest attempt.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last good state.
    pub world: World,
    /// How many different good states there have been, this one included.
    pub generation: u64,
    /// How many times the directory has been read.
    pub attempts: u64,
    /// The latest attempt was refused: `world` is older than the files, and `diagnostics` say why.
    pub refused: bool,
    /// Diagnostics of the latest attempt.
    pub diagnostics: Arc<[Diagnostic]>,
    /// Objects that the latest attempt left out.
    pub skipped: Arc<[Skipped]>,
}

/// Holds the last good state of a directory and follows its changes until dropped.
#[derive(Debug)]
pub struct Watcher {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Reads `dir` and begins to follow it.
    ///
    /// # Errors
    /// The outcome of the first reading, if it was refused: there is no earlier state to fall back to.
    pub async fn start(dir: &Path) -> Result<Self, LoadOutcome> {
        Self::follow(Source::directory(dir, &[])).await
    }

    /// Reads a source and begins to follow it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn follow(source: Source) -> Result<Self, LoadOutcome> {
        let (seen, outcome) = read(&source).await;
        let refused = outcome.world.is_none();
        let LoadOutcome { world, diagnostics, skipped } = match refused {
            true => gone_on_with(&source, outcome).await?,
            false => outcome,
        };
        let Some(world) = world else { return Err(LoadOutcome { world, diagnostics, skipped }) };
        if !refused {
            report(&diagnostics);
        }
        let first = Snapshot {
            world,
            generation: 1,
            attempts: 1,
            refused,
            diagnostics: diagnostics.into(),
            skipped: skipped.into(),
        };
        let (sender, snapshots) = watch::channel(Arc::new(first));
        let task = tokio::spawn(follow(source, seen, sender));
        Ok(Self { snapshots, task })
    }

    /// One that is fed by a task, which ends with it.
    pub(super) fn of(snapshots: watch::Receiver<Arc<Snapshot>>, task: JoinHandle<()>) -> Self {
        Self { snapshots, task }
    }

    /// A receiver that sees every later snapshot, good or refused; compare generations to know whether the World changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How the directory's files look from outside. Unreadable directories look empty, and reading them says why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Looks(Vec<(PathBuf, FileLooks)>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileLooks {
    length: u64,
    modified: Option<SystemTime>,
    /// Device and inode: a file that replaces another is another file, whatever its time.
    identity: (u64, u64),
}

impl Looks {
    fn of(source: &Source) -> Self {
        use std::os::unix::fs::MetadataExt;
        let looks = source.files().into_iter().filter_map(|path| {
            let metadata = std::fs::metadata(&path).ok()?;
            let identity = (metadata.dev(), metadata.ino());
            Some((path, FileLooks { length: metadata.len(), modified: metadata.modified().ok(), identity }))
        });
        Self(looks.collect())
    }

    /// Whether a file that had content is empty now.
    fn emptied_since(&self, earlier: &Self) -> bool {
        self.0
            .iter()
            .filter(|(_, looks)| looks.length == 0)
            .any(|(path, _)| earlier.0.iter().any(|(other, looks)| other == path && looks.length > 0))
    }
}

/// What a start goes on with whose configuration is refused: what was taken last, and what there is to say against the new one.
async fn gone_on_with(source: &Source, mut refused: LoadOutcome) -> Result<LoadOutcome, LoadOutcome> {
    let own = source.clone();
    let reading = tokio::task::spawn_blocking(move || match own.last(&mut refused) {
        Some(last) => {
            report(&refused.diagnostics);
            Ok(LoadOutcome { diagnostics: refused.diagnostics, ..last })
        }
        None => Err(refused),
    });
    let nothing = |_| Err(LoadOutcome { world: None, diagnostics: Vec::new(), skipped: Vec::new() });
    reading.await.unwrap_or_else(nothing)
}

/// Looks before it reads: a change in between is seen the next time.
async fn read(source: &Source) -> (Looks, LoadOutcome) {
    let own = source.clone();
    let reading = tokio::task::spawn_blocking(move || (Looks::of(&own), own.load()));
    reading.await.unwrap_or_else(|error| {
        let reason = format!("reading it failed: {error}");
        let diagnostic = Diagnostic::file_error(
            &source.path().display().to_string(),
            reason,
            "report this as a fault of Weft",
        );
        (Looks(Vec::new()), LoadOutcome { world: None, diagnostics: vec![diagnostic], skipped: Vec::new() })
    })
}

async fn look(source: &Source) -> Looks {
    let own = source.clone();
    tokio::task::spawn_blocking(move || Looks::of(&own)).await.unwrap_or(Looks(Vec::new()))
}

async fn follow(source: Source, mut seen: Looks, sender: watch::Sender<Arc<Snapshot>>) {
    let wake = Arc::new(Notify::new());
    // Dropped with this task; without it polling alone does the work, only later.
    let _notifications = subscribe(&source, wake.clone());
    loop {
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return,
        }
        let looks = look(&source).await;
        if looks == seen {
            continue;
        }
        let changed = Instant::now();
        settle(&source, &seen, looks).await;
        let settled = Instant::now();
        let (looks, outcome) = read(&source).await;
        metrics::histogram!("pilot_debounce_time").record((settled - changed).as_secs_f64());
        metrics::histogram!("pilot_pushcontext_init_seconds").record(settled.elapsed().as_secs_f64());
        let emptied = looks.0.is_empty() && !seen.0.is_empty();
        publish(source.path(), outcome, emptied, &sender);
        // An emptied directory is compared with what it held, however often it is looked at.
        seen = looks;
    }
}

/// Waits until the directory has been still for a moment, but not for ever. What was emptied may be about to be written: that is
/// waited for longer, and no longer than until it is.
async fn settle(source: &Source, seen: &Looks, mut looks: Looks) {
    let deadline = Instant::now() + LONGEST_WAIT;
    let mut still_since = Instant::now();
    loop {
        tokio::time::sleep(QUIET).await;
        let now = look(source).await;
        let late = Instant::now() >= deadline;
        if now != looks {
            (looks, still_since) = (now, Instant::now());
        } else if !looks.emptied_since(seen) || still_since.elapsed() >= QUIET_EMPTIED {
            return;
        }
        if late {
            return;
        }
    }
}

fn publish(dir: &Path, mut outcome: LoadOutcome, emptied: bool, sender: &watch::Sender<Arc<Snapshot>>) {
    let last = sender.borrow().clone();
    if emptied {
        // A mount that went away looks the same as a mesh that was deleted; only one of them can be meant lightly.
        outcome.world = None;
        outcome.diagnostics = vec![Diagnostic::file_error(
            &dir.display().to_string(),
            "holds no configuration any more",
            "the last state stays; put files there, or stop the control plane to end the mesh",
        )];
    }
    report(&outcome.diagnostics);
    let attempts = last.attempts + 1;
    let (diagnostics, skipped) = (outcome.diagnostics.into(), outcome.skipped.into());
    let next = match outcome.world {
        Some(world) => {
            let changed = world.version() != last.world.version();
            let generation = last.generation + u64::from(changed);
            if changed {
                let kind = match world.since(&last.world) {
                    Change::Endpoints(_) => "eds",
                    Change::Anything => "config",
                };
                metrics::counter!("pilot_inbound_updates", "type" => kind).increment(1);
                tracing::info!(generation, services = world.services().len(), "configuration applied");
            }
            Snapshot { world, generation, attempts, refused: false, diagnostics, skipped }
        }
        None => {
            tracing::warn!(generation = last.generation, "configuration refused; the last good state stays");
            let world = last.world.clone();
            Snapshot { world, generation: last.generation, attempts, refused: true, diagnostics, skipped }
        }
    };
    sender.send_replace(Arc::new(next));
}

pub(super) fn report(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        if diagnostic.is_error() {
            tracing::error!("{diagnostic}");
            tell(diagnostic);
        } else if diagnostic.severity == Grade::Info {
            tracing::info!("{diagnostic}");
        } else {
            tracing::warn!("{diagnostic}");
        }
    }
}

/// Tells of what was refused.
pub(super) fn tell(refused: &Diagnostic) {
    emit(Kind::ConfigRejected, || {
        let source = if refused.line > 0 {
            format!("{}:{}", refused.file, refused.line)
        } else {
            refused.file.clone()
        };
        Event::new(Kind::ConfigRejected, Outcome::Failed, Severity::Medium, "reader", refused.to_string())
            .with_some("resource", refused.object.clone())
            .with_some("field", refused.path.clone())
            .with("reason", refused.reason.as_str())
            .with("operation", "read configuration")
            .with("source", source)
    });
}

fn subscribe(source: &Source, wake: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        // Reading causes events too; only what may have changed something wakes.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            wake.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(handler).and_then(|mut watcher| {
        let (place, below) = source.watched();
        let mode = if below { notify::RecursiveMode::Recursive } else { notify::RecursiveMode::NonRecursive };
        watcher.watch(place, mode)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::info!(%error, "no file notifications; changes are found by polling every {} s", POLL.as_secs());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn rule(namespace: &str, mode: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\nspec:\n  mtls:\n    mode: {mode}\n"
        )
    }

    /// Writes as editors do: beside the file, then renamed over it.
    fn replace(path: &Path, text: &str) {
        let beside = path.with_extension("tmp");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, path).unwrap();
    }

    async fn until(
        receiver: &mut watch::Receiver<Arc<Snapshot>>,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Arc<Snapshot> {
        let found = tokio::time::timeout(DEADLINE, receiver.wait_for(|snapshot| wanted(snapshot))).await;
        found.expect("in time").expect("the watcher lives").clone()
    }

    #[tokio::test]
    async fn edits_are_followed_and_a_bad_one_leaves_the_last_good_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peer.yaml");
        std::fs::write(&file, rule("n", "STRICT")).unwrap();
        let watcher = Watcher::start(dir.path()).await.expect("the first state is good");
        let mut receiver = watcher.subscribe();
        let first = watcher.snapshot();
        assert_eq!((first.generation, first.refused), (1, false));

        replace(&file, &rule("n", "DISABLE"));
        let second = until(&mut receiver, |snapshot| snapshot.generation == 2).await;
        assert_ne!(first.world.version(), second.world.version());

        replace(&file, &rule("n", "STRICKT"));
        let bad = until(&mut receiver, |snapshot| snapshot.refused).await;
        assert_eq!((bad.generation, bad.world.version()), (2, second.world.version()));
        let text = bad.diagnostics[0].to_string();
        let expected = "peer.yaml:6: PeerAuthentication n/default: spec.mtls.mode: unknown value \"STRICKT\"";
        assert!(text.contains(expected), "{text}");

        // Mended in place and by a second file at once.
        std::fs::write(dir.path().join("more.yaml"), rule("m", "STRICT")).unwrap();
        std::fs::write(&file, rule("n", "DISABLE")).unwrap();
        let good = until(&mut receiver, |snapshot| !snapshot.refused && snapshot.generation == 3).await;
        assert_eq!(good.world.peer_authentications().len(), 2);
        assert_eq!(good.diagnostics.len(), 0);

        std::fs::remove_file(dir.path().join("more.yaml")).unwrap();
        let fewer = until(&mut receiver, |snapshot| snapshot.generation == 4).await;
        assert_eq!(fewer.world.peer_authentications().len(), 1);
    }

    #[tokio::test]
    async fn a_change_without_meaning_makes_no_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peer.yaml");
        std::fs::write(&file, rule("n", "STRICT")).unwrap();
        let watcher = Watcher::start(dir.path()).await.expect("the first state is good");
        replace(&file, &format!("# a comment\n{}", rule("n", "STRICT")));
        let again = until(&mut watcher.subscribe(), |snapshot| snapshot.attempts == 2).await;
        assert_eq!((again.generation, again.refused), (1, false));
    }

    #[tokio::test]
    async fn a_directory_that_loses_everything_keeps_its_last_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peer.yaml");
        std::fs::write(&file, rule("n", "STRICT")).unwrap();
        let watcher = Watcher::start(dir.path()).await.expect("the first state is good");
        std::fs::remove_file(&file).unwrap();
        let bare = until(&mut watcher.subscribe(), |snapshot| snapshot.refused).await;
        assert_eq!(bare.world.peer_authentications().len(), 1);
        assert!(bare.diagnostics[0].to_string().contains("holds no configuration any more"));
    }

    /// Who starts anew with something bad in place goes on as if it had run on.
    #[tokio::test]
    async fn a_start_that_finds_nothing_good_goes_on_with_what_was_taken_last() {
        use crate::ingest::bundle::{Memory, SigningKey, create};

        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::create_dir(at("state")).unwrap();
        let key = |name: &str| {
            let (private, public) = SigningKey::generate().unwrap();
            std::fs::write(at(name), &*private).unwrap();
            std::fs::write(at(&format!("{name}.pub")), public).unwrap();
            SigningKey::open(&at(name)).unwrap()
        };
        let (first, second) = (key("first"), key("second"));
        let bundle = |text: String, day: u32, key: &SigningKey| {
            let files = [("peer.yaml".to_owned(), text)].into();
            create(files, &format!("v{day}"), &format!("2026-01-{day:02}T00:00:00Z"), key).unwrap()
        };
        let start = |key: &str| {
            let memory = Memory::new(&at("state"), false);
            memory.begin();
            let source = Source::bundle(&at("mesh.bundle"), &[at(&format!("{key}.pub"))]).remembering(memory);
            Watcher::follow(source)
        };
        replace(&at("mesh.bundle"), &bundle(rule("n", "STRICT"), 2, &first));
        let good = start("first").await.unwrap().snapshot().world.version();
        for bad in [
            bundle(rule("n", "DISABLE"), 1, &first),
            bundle(rule("n", "STRICKT"), 3, &first),
            bundle(rule("n", "DISABLE"), 3, &second),
            "{".to_owned(),
        ] {
            replace(&at("mesh.bundle"), &bad);
            let watcher = start("first").await.unwrap();
            let begun = watcher.snapshot();
            assert_eq!((begun.world.version(), begun.refused), (good, true), "{bad}");
            assert!(begun.diagnostics.iter().any(Diagnostic::is_error));
            // And the next good one is taken, as by who has run on.
            replace(&at("mesh.bundle"), &bundle(rule("n", "STRICT"), 2, &first));
            until(&mut watcher.subscribe(), |s| !s.refused && s.world.version() == good).await;
        }
        // What was damaged, or is an older one because there was no room for the last, is put right once the last is read again.
        for kept in ["{".to_owned(), bundle(rule("n", "DISABLE"), 1, &first)] {
            std::fs::write(at("state/accepted-configuration.bundle"), kept).unwrap();
            assert!(!start("first").await.unwrap().snapshot().refused);
            let right = std::fs::read_to_string(at("mesh.bundle")).unwrap();
            replace(&at("mesh.bundle"), "{");
            let begun = start("first").await.unwrap().snapshot();
            assert_eq!((begun.world.version(), begun.refused), (good, true));
            replace(&at("mesh.bundle"), &right);
        }
        std::fs::remove_file(at("mesh.bundle")).unwrap();
        assert_eq!(start("first").await.unwrap().snapshot().world.version(), good);
        // The word about it is damaged, and it is not.
        std::fs::write(at("state/accepted-configuration.json"), "{").unwrap();
        assert_eq!(start("first").await.unwrap().snapshot().world.version(), good);
        // By whom it is signed counts no more; and it is damaged.
        assert!(
            start("second")
                .await
                .unwrap_err()
                .diagnostics
                .iter()
                .any(|d| d.to_string().contains("was taken last"))
        );
        std::fs::write(at("state/accepted-configuration.bundle"), "{").unwrap();
        let refused = start("first").await.unwrap_err();
        assert!(refused.errors().any(|d| d.file.contains("accepted-configuration.bundle")), "{refused:?}");
    }

    #[tokio::test]
    async fn a_bad_first_state_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "kind: [").unwrap();
        let outcome = Watcher::start(dir.path()).await.expect_err("refused");
        assert!(outcome.errors().count() > 0);
        let missing = Watcher::start(&dir.path().join("nowhere")).await.expect_err("refused");
        assert!(missing.diagnostics[0].to_string().contains("cannot be read"));
    }
}
