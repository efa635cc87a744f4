//! A bell: somebody rings it from anywhere, and one task hears it. Asking whether it has rung costs next to nothing, so whoever
//! is polled often can ask each time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use parking_lot::Mutex;

#[derive(Debug)]
struct State {
    rung: AtomicBool,
    /// Stays here when it rings: a ring that comes while the one before is being answered needs it as well.
    task: Mutex<Waker>,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().clone();
        task.wake();
    }
}

/// Who rings.
#[derive(Clone, Debug)]
pub struct Bell(Arc<State>);

impl Bell {
    /// Rings, and wakes who hears it.
    pub fn ring(&self) {
        self.0.clone().wake();
    }

    /// A waker that rings.
    pub fn waker(&self) -> Waker {
        self.0.clone().into()
    }
}

/// Who hears it.
#[derive(Debug)]
pub struct Ear {
    state: Arc<State>,
    /// The waker that is in the state, to be compared without its lock.
    known: Waker,
}

/// A bell, and who hears it.
pub fn bell() -> (Bell, Ear) {
    let known = Waker::noop().clone();
    let state = Arc::new(State { rung: AtomicBool::new(false), task: Mutex::new(known.clone()) });
    (Bell(state.clone()), Ear { state, known })
}

impl Ear {
    /// Whether it has rung. From here on a ring wakes this task.
    pub fn hears(&mut self, task: &Waker) -> bool {
        if !self.known.will_wake(task) {
            self.known.clone_from(task);
            self.state.task.lock().clone_from(task);
        }
        // After the task is known: whoever rings from here on wakes it.
        self.state.rung.load(Ordering::Acquire)
    }

    /// What has rung is answered: whatever was done before the last ring is seen from here on, and the next is heard again.
    pub fn answer(&self) {
        self.state.rung.swap(false, Ordering::AcqRel);
    }
}
