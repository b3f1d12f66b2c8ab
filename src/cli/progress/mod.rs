//! What a person sees while something takes long: bars on a terminal, plain lines elsewhere. An onlooker: it
//! decides nothing, and everything works without it.

mod download;
mod store_bar;
mod sweep_progress;

pub(super) use download::DownloadBars;
pub(super) use store_bar::StoreBar;
pub(super) use sweep_progress::{SweepProgress, TrialLabel};

use indicatif::ProgressStyle;

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("invariant: the templates of this module are well formed")
        .progress_chars("━╸ ")
}
