//! What is read beside the configuration (keys of token issuers, lists of addresses, credentials): asked for when it is due, and
//! laid into each state of the mesh before that goes out.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ingest::Snapshot;
use crate::model::World;

/// Something that reads from sources which the configuration names, and keeps what was last good.
pub trait Reads: Sized + Send + 'static {
    /// What a source has answered.
    type Answer: Send + 'static;

    /// Begins to ask the sources of this world that are due, and forgets all others.
    fn ask(&mut self, world: &World);

    /// The questions under way.
    fn under_way(&mut self) -> &mut JoinSet<Self::Answer>;

    /// Takes what has come of a question.
    fn take(&mut self, answer: Self::Answer);

    /// When the next source is due that is not being asked.
    fn due(&self) -> Option<Instant>;

    /// Whether every source has been asked at least once.
    fn is_settled(&self) -> bool;

    /// The world with what is known.
    fn world(&mut self, world: &World) -> impl Future<Output = World> + Send;

    /// The world with what there is: all that is due is read, and waited for.
    fn settle(&mut self, world: &World) -> impl Future<Output = World> + Send {
        async {
            self.ask(world);
            while let Some(answer) = self.under_way().join_next().await {
                // There is none of a question that broke off.
                answer.into_iter().for_each(|answer| self.take(answer));
            }
            self.world(world).await
        }
    }

    /// What `snapshots` say, with what they name; again whenever that changes.
    fn follow(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> impl Future<Output = watch::Receiver<Arc<Snapshot>>> + Send {
        async move {
            let with = |snapshot: &Snapshot, world: World| Arc::new(Snapshot { world, ..snapshot.clone() });
            let first = snapshots.borrow_and_update().clone();
            let world = self.settle(&first.world).await;
            let (sender, receiver) = watch::channel(with(&first, world));
            tokio::spawn(async move {
                loop {
                    let due = self.due();
                    let idle = async {
                        match due {
                            Some(due) => tokio::time::sleep_until(due).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        changed = snapshots.changed() => if changed.is_err() { return },
                        Some(answer) = self.under_way().join_next() => {
                            answer.into_iter().for_each(|answer| self.take(answer));
                        }
                        () = idle => {}
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    self.ask(&snapshot.world);
                    if self.is_settled() {
                        let world = self.world(&snapshot.world).await;
                        sender.send_if_modified(|now| {
                            let changed = now.world.version() != world.version();
                            *now = with(&snapshot, world);
                            changed
                        });
                    }
                }
            });
            receiver
        }
    }
}
