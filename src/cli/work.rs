//! Long work on another thread while the user may change their mind.

use super::{CliError, Exit, console::Console};
use crate::sched::Interrupts;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// A request to stop that working threads look at.
#[derive(Debug, Clone, Default)]
pub(super) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Asks to stop; says whether that had been asked before.
    pub(super) fn set(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether to stop.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the first interrupt does to a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnInterrupt {
    /// The work looks at the [`StopFlag`] and ends in order.
    Ask,
    /// The work cannot be asked, and loses nothing by being cut off.
    CutOff,
}

/// Does `work` on another thread and waits for it. A second interrupt ends the program at once: everything on
/// disk is made to survive that.
pub(super) async fn on_thread<T: Send + 'static>(
    interrupts: &mut Interrupts,
    console: &Console,
    stop: &StopFlag,
    on_interrupt: OnInterrupt,
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    let mut task = tokio::task::spawn_blocking(work);
    loop {
        tokio::select! {
            done = &mut task => return match done {
                Ok(done) => done,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = interrupts.next() => {
                let again = stop.set();
                if again || on_interrupt == OnInterrupt::CutOff {
                    console.note("interrupted; the same command continues");
                    leave(Exit::Interrupted);
                }
                console.note("stopping; once more to stop at once");
            }
        }
    }
}

#[expect(clippy::exit, reason = "the working thread cannot be ended in any other way")]
fn leave(exit: Exit) -> ! {
    std::process::exit(i32::from(exit.code()))
}
