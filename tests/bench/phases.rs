//! Where the time of a step goes: seconds spent in each of its phases, less those of the phases within.

use saesweep::kernels::phase::TARGET;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tracing::{Id, Subscriber};
use tracing_subscriber::{
    Layer, filter,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

thread_local! {
    /// Of the phases that are open, outermost first: when they began, and the seconds of phases within them so far.
    static OPEN: RefCell<Vec<(Instant, f64)>> = const { RefCell::new(Vec::new()) };
}

/// Seconds by phase.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phases(Arc<Mutex<BTreeMap<&'static str, f64>>>);

impl Phases {
    /// Measures all phases that `run` goes through on this thread, and what it does beside them as "rest".
    pub(crate) fn measure(&self, run: impl FnOnce()) {
        let phases = filter::filter_fn(|metadata| metadata.target() == TARGET);
        let subscriber = tracing_subscriber::registry().with(self.clone().with_filter(phases));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace_span!(target: TARGET, "rest").in_scope(run);
        });
    }

    /// What was measured so far.
    pub(crate) fn seconds(&self) -> BTreeMap<&'static str, f64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Phases {
    fn on_enter(&self, _: &Id, _: Context<'_, S>) {
        OPEN.with_borrow_mut(|open| open.push((Instant::now(), 0.0)));
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some((began, within)) = OPEN.with_borrow_mut(Vec::pop) else { return };
        let secs = began.elapsed().as_secs_f64();
        OPEN.with_borrow_mut(|open| {
            if let Some((_, of_parent)) = open.last_mut() {
                *of_parent += secs;
            }
        });
        if let Some(span) = context.span(id) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(span.name()).or_default() +=
                secs - within;
        }
    }
}
