//! The model's tokenizer as packing wants it: watched, and on several threads.

use super::build::{HarvestPhase, Watch};
use crate::{data::Encode, model::ModelTokenizer};
use std::cell::{Cell, RefCell};

/// A tokenizer at work on one data set.
pub(crate) struct Tokenise<'a, 'b> {
    tokenizer: &'a ModelTokenizer,
    watch: RefCell<&'a mut Watch<'b>>,
    rows_done: Cell<u64>,
    rows_wanted: u64,
    /// Whether the caller asked to stop, which `Encode` can only tell as a failure.
    pub(crate) interrupted: Cell<bool>,
}

impl<'a, 'b> Tokenise<'a, 'b> {
    pub(crate) fn new(tokenizer: &'a ModelTokenizer, watch: &'a mut Watch<'b>, rows_wanted: u64) -> Self {
        Self {
            tokenizer,
            watch: RefCell::new(watch),
            rows_done: Cell::new(0),
            rows_wanted,
            interrupted: Cell::new(false),
        }
    }
}

impl Encode for Tokenise<'_, '_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text).map_err(|error| error.to_string())
    }

    fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, (usize, String)> {
        if self
            .watch
            .borrow_mut()
            .tell(HarvestPhase::Tokenising, self.rows_done.get(), self.rows_wanted)
            .is_err()
        {
            self.interrupted.set(true);
            return Err((0, "interrupted".to_owned()));
        }
        let tokens = encode_all(self.tokenizer, texts, candle_core::utils::get_num_threads())?;
        let n: usize = tokens.iter().map(Vec::len).sum();
        // The first and the last documents are both tokenised, so the sum may pass what is wanted.
        self.rows_done.set((self.rows_done.get() + n as u64).min(self.rows_wanted));
        Ok(tokens)
    }

    fn bos(&self) -> Option<u32> {
        self.tokenizer.bos_id()
    }

    fn eos(&self) -> Option<u32> {
        self.tokenizer.eos_id()
    }

    fn sep(&self) -> Option<u32> {
        self.tokenizer.sep_id()
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }
}

/// Tokenises texts, shared out among threads in stretches; the result is the same for any number of them.
fn encode_all(
    tokenizer: &ModelTokenizer,
    texts: &[&str],
    threads: usize,
) -> Result<Vec<Vec<u32>>, (usize, String)> {
    let each = texts.len().div_ceil(threads.max(1)).max(1);
    let stretch = |(share, texts): (usize, &[&str])| -> Result<Vec<Vec<u32>>, (usize, String)> {
        let encode = |(idx, text): (usize, &&str)| {
            tokenizer.encode(text).map_err(|error| (share * each + idx, error.to_string()))
        };
        texts.iter().enumerate().map(encode).collect()
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let mut stretches = texts.chunks(each).enumerate();
        let first = stretches.next();
        let others: Vec<_> = stretches.map(|part| scope.spawn(move || stretch(part))).collect();
        let first = first.map(stretch);
        let others = others.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        first.into_iter().chain(others).collect()
    });
    let mut all = Vec::with_capacity(texts.len());
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}
