//! How a proxy ends: what comes in drains, what the application sends goes on, and there is one deadline.
//!
//! 1. Told to end, the proxy is not ready any more. A gateway's listeners, and a sidecar's inbound ones, drain: each answer ends
//!    its connection (`connection: close`, GOAWAY). They still accept, because whoever sends connections here hears of the end
//!    later than we do. Outbound listeners go on as ever, with no word of the end.
//! 2. For the minimum drain time that is all. After it the proxy may end early ([`Ending::nothing_left`]).
//! 3. In the middle between there and the deadline the draining listeners stop accepting, and their idle connections are
//!    closed.
//! 4. At the deadline what is left is cut. A second signal cuts at once.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::application;
use crate::admin::AdminState;
use crate::bootstrap::{Early, Ending};
use crate::codec::DrainPhase;
use crate::state::{DrainScope, Role};
use crate::telemetry::access_log::Sink;

/// How long collectors may take for what waits for them; what they are told of metrics comes after entries of logs, and says how
/// many of these were lost.
const LOGS: Duration = Duration::from_secs(1);
const METRICS: Duration = Duration::from_secs(1);

/// How often it is looked whether there is anything left.
const LOOK: Duration = Duration::from_millis(20);

/// Why a proxy whose application has ended ends.
const ALONE: &str = "the application has ended";

/// Those who push metrics, and how they are told of the end.
pub(super) struct Pushing {
    pub tasks: Vec<JoinHandle<()>>,
    pub end: watch::Sender<Option<tokio::time::Instant>>,
}

impl Pushing {
    /// A last round.
    async fn finish(&mut self, limit: Duration) {
        // A little earlier than it is waited for: what is not sent is counted by then.
        let _ = self.end.send(Some(tokio::time::Instant::now() + limit.mul_f32(0.9)));
        let all = async {
            for task in &mut self.tasks {
                let _ = task.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!(
                "metrics of the last interval were not pushed in time; see that their collector answers"
            );
        }
    }
}

/// Waits until somebody wants the end, or the application has come to its own.
pub(super) async fn due(state: &AdminState, ending: &Ending) -> anyhow::Result<&'static str> {
    let alone = async {
        match ending.with_application {
            true => application::ended().await,
            false => std::future::pending().await,
        }
    };
    tokio::select! {
        told = told(state) => told,
        alone = alone => alone.map(|()| ALONE),
    }
}

/// Waits until somebody wants the end: SIGTERM, SIGINT, `/quitquitquit`.
async fn told(state: &AdminState) -> anyhow::Result<&'static str> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = tokio::signal::ctrl_c() => "SIGINT",
        () = state.quit.notified() => "/quitquitquit",
    })
}

/// Ends in order; comes back when the process may exit.
pub(super) async fn end(state: &AdminState, ending: &Ending, why: &str, mut pushing: Pushing) {
    let scope = DrainScope::of(state.role);
    if state.readiness.is_drained() {
        // Somebody asked for the drain before (POST /drain), when the pod began to end: kubelet's signal comes when the
        // application is gone.
        tracing::info!(why, "ending at once: it was drained before");
        return finish(state, &mut pushing).await;
    }
    let ending = &if why == ALONE { ending.without_application() } else { *ending };
    let deadline = ending.deadline();
    let minimum = deadline.map_or(ending.minimum, |d| ending.minimum.min(d));
    tracing::info!(why, ?scope, ?minimum, ?deadline, early = ?ending.early, "draining");
    state.drain(scope);
    let began = Instant::now();
    let closing = deadline.map(|d| minimum + (d - minimum) / 2);
    let again = told(state);
    tokio::pin!(again);
    let mut closed = false;
    let mut gone = application::Gone::default();
    loop {
        let elapsed = began.elapsed();
        if deadline.is_some_and(|d| elapsed >= d) {
            break;
        }
        if elapsed >= minimum && nothing_left(state, ending, &mut gone) {
            break;
        }
        if !closed && closing.is_some_and(|c| elapsed >= c) {
            closed = true;
            state.engine.close_listeners(scope);
            state.engine.drain(scope, DrainPhase::Closing);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            // Nothing is waited for but files.
            _ = &mut again => return cut(state),
        }
    }
    tokio::select! {
        () = finish(state, &mut pushing) => {}
        _ = &mut again => cut(state),
    }
}

fn nothing_left(state: &AdminState, ending: &Ending, gone: &mut application::Gone) -> bool {
    match ending.early {
        Early::Never => false,
        Early::NoConnections => state.engine.active_connections() == 0,
        // A gateway has no application.
        Early::NoApplication if state.role == Role::Gateway => state.engine.active_connections() == 0,
        Early::NoApplication => state.engine.active_connections() == 0 && gone.is_gone(),
    }
}

/// What is logged and counted goes to collectors, then to files.
async fn finish(state: &AdminState, pushing: &mut Pushing) {
    state.engine.close_listeners(DrainScope::All);
    let lost = state.engine.tables().loggers.flush(LOGS).await;
    if lost > 0 {
        tracing::warn!(
            lost,
            "entries of access logs were not sent in time; see that their collectors answer"
        );
    }
    pushing.finish(METRICS).await;
    cut(state);
}

fn cut(state: &AdminState) {
    state.engine.close_listeners(DrainScope::All);
    tracing::info!(left = state.engine.active_connections(), "ending");
    Sink::flush_all(Duration::from_secs(1));
    weft_events::flush(Duration::from_secs(1));
}
