//! The thread that starts and watches all processes of a mesh. It is a thread of its own because the kernel ties a child's
//! life to the thread that started it, and a runtime's worker threads come and go.

use std::collections::BTreeMap;
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::process::Signal;
use tokio::sync::{mpsc, watch};

use super::process::{Death, Order, Part, Spec, State, keep};

/// All processes of a mesh. Dropping it kills them.
pub(super) struct Supervisor {
    specs: Option<mpsc::UnboundedSender<Kept>>,
    handles: BTreeMap<Part, Handle>,
    deaths: mpsc::UnboundedSender<Death>,
    thread: Option<JoinHandle<()>>,
}

struct Kept {
    spec: Spec,
    orders: mpsc::UnboundedReceiver<Order>,
    state: watch::Sender<State>,
    deaths: mpsc::UnboundedSender<Death>,
}

struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    state: watch::Receiver<State>,
}

impl Supervisor {
    /// Starts the thread; what dies unasked is told to the receiver.
    pub(super) fn new() -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Death>)> {
        let (specs, mut incoming) = mpsc::unbounded_channel::<Kept>();
        let (deaths, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Some(Kept { spec, orders, state, deaths }) = incoming.recv().await {
                tasks.spawn(keep(spec, orders, state, deaths));
            }
            // The end: orders have ended too, and each task kills its process.
            while tasks.join_next().await.is_some() {}
        };
        let thread = std::thread::Builder::new()
            .name("supervisor".to_owned())
            .spawn(move || runtime.block_on(work))
            .context("the supervisor's thread cannot start")?;
        Ok((Self { specs: Some(specs), handles: BTreeMap::new(), deaths, thread: Some(thread) }, receiver))
    }

    /// Takes a process in, and starts it.
    pub(super) fn add(&mut self, spec: Spec) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (sender, state) = watch::channel(State::default());
        let part = spec.part.clone();
        let kept = Kept { spec, orders: receiver, state: sender, deaths: self.deaths.clone() };
        if let Some(specs) = &self.specs {
            // The thread lives as long as we do.
            let _ = specs.send(kept);
        }
        let _ = orders.send(Order::Start);
        self.handles.insert(part, Handle { orders, state });
    }

    fn handle(&self, part: &Part) -> anyhow::Result<&Handle> {
        self.handles.get(part).with_context(|| format!("this mesh does not run {part}"))
    }

    pub(super) fn state(&self, part: &Part) -> anyhow::Result<watch::Receiver<State>> {
        Ok(self.handle(part)?.state.clone())
    }

    pub(super) fn states(&self) -> impl Iterator<Item = (&Part, State)> {
        self.handles.iter().map(|(part, handle)| (part, handle.state.borrow().clone()))
    }

    pub(super) fn start(&self, part: &Part) -> anyhow::Result<()> {
        let _ = self.handle(part)?.orders.send(Order::Start);
        Ok(())
    }

    pub(super) fn signal(&self, part: &Part, signal: Signal, stay_down: bool) -> anyhow::Result<()> {
        let _ = self.handle(part)?.orders.send(Order::Signal { signal, stay_down });
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.handles.clear();
        self.specs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
