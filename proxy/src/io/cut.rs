//! The end of a stream by somebody who does not read it. Every read asks, so asking costs next to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

#[derive(Debug)]
struct State {
    done: AtomicBool,
    reader: Mutex<Waker>,
}

/// Ends a stream.
#[derive(Debug)]
pub struct Scissors(Arc<State>);

/// What a stream's reader asks.
#[derive(Debug)]
pub struct Cut {
    state: Arc<State>,
    /// The waker that is in the state, to be compared without its lock.
    known: Waker,
}

/// What ends a stream, and what its reader asks.
pub fn cut() -> (Scissors, Cut) {
    let known = Waker::noop().clone();
    let state = Arc::new(State { done: AtomicBool::new(false), reader: Mutex::new(known.clone()) });
    (Scissors(state.clone()), Cut { state, known })
}

impl Scissors {
    /// Ends it, and wakes who reads it.
    pub fn cut(self) {
        self.0.done.store(true, Ordering::Release);
        let reader = self.0.reader.lock().clone();
        reader.wake();
    }
}

impl Cut {
    /// Whether the stream is cut. If it is not, this reader is woken when it is.
    pub(super) fn is_done(&mut self, reader: &Waker) -> bool {
        if !self.known.will_wake(reader) {
            self.known.clone_from(reader);
            self.state.reader.lock().clone_from(reader);
        }
        // After the waker is known: whoever cuts from here on wakes it.
        self.state.done.load(Ordering::Acquire)
    }
}
