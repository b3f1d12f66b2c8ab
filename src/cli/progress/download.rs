//! Downloads from the hub, one bar per file.

use super::style;
use crate::{
    cli::{console::Console, show},
    hub::Progress,
};
use indicatif::ProgressBar;

/// Draws a bar for the file that comes, or prints a line for every file that is there.
#[derive(Debug)]
pub(in crate::cli) struct DownloadBars {
    console: Console,
    bar: Option<ProgressBar>,
    file: String,
    size: u64,
}

impl DownloadBars {
    /// No download yet.
    pub(in crate::cli) fn new(console: &Console) -> Self {
        Self { console: console.clone(), bar: None, file: String::new(), size: 0 }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for DownloadBars {
    fn start(&mut self, file: &str, bytes: u64) {
        self.clear();
        (self.file, self.size) = (file.to_owned(), bytes);
        if self.console.is_live() {
            let bar = self.console.bars().add(ProgressBar::new(bytes));
            bar.set_style(style("download {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
            bar.set_message(file.to_owned());
            self.bar = Some(bar);
        }
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        self.clear();
        self.console.note(&format!("downloaded {}, {}", self.file, show::bytes(self.size)));
    }
}
