//! How far an orderly end has come, as connections see it.

use tokio::sync::watch;

/// Phases of draining a listener, a filter chain, or the whole proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainPhase {
    /// Not draining.
    #[default]
    Serving,
    /// Answers say that the connection ends (`connection: close`, GOAWAY); idle connections wait for their next request, for
    /// it may be on its way already.
    Draining,
    /// Idle connections close now.
    Closing,
}

/// A connection's view of the phase.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<DrainPhase>);

impl Drain {
    /// A signal and its first view.
    pub fn new() -> (watch::Sender<DrainPhase>, Self) {
        let (sender, receiver) = watch::channel(DrainPhase::Serving);
        (sender, Self(receiver))
    }

    /// The view of an existing signal.
    pub fn of(sender: &watch::Sender<DrainPhase>) -> Self {
        Self(sender.subscribe())
    }

    /// The phase now.
    pub fn phase(&self) -> DrainPhase {
        *self.0.borrow()
    }

    /// Waits for a phase, or a later one. Without anybody left to signal it waits for ever.
    pub async fn reached(&mut self, phase: DrainPhase) {
        if self.0.wait_for(|p| *p >= phase).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
