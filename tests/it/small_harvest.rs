//! What harvesting needs in a test: a trial, a few stories, the numbers of a tensor.

use super::small_trial::{data_of, model_of, small_trial};
use candle_core::Tensor;
use saesweep::trial::TrialConfig;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A trial on 205 tokens of [`stories`] at these hooks; `hook_out` is empty but for a transcoder.
pub(crate) fn hooked_trial(hook: &str, hook_out: &str) -> TrialConfig {
    let mut config = small_trial();
    let model = model_of(&mut config);
    (model.hook, model.hook_out) = (hook.to_owned(), hook_out.to_owned());
    let data = data_of(&mut config);
    data.context_size = 10;
    (data.eval_fraction, data.eval_max_tokens) = (0.2, 60);
    config.store.tokens = 205;
    config
}

/// Stories of different lengths, in a file in `folder`.
pub(crate) fn stories(folder: &Path) -> Vec<PathBuf> {
    let words = ["the cat", "a dog", "sat", "ran away", "and", "then", "was happy", "in the garden", "once"];
    let story = |i: usize| -> String {
        let word = |j: usize| words[(i * 7 + j * (i % 4 + 1)) % words.len()];
        (0..4 + i % 13).map(word).collect::<Vec<_>>().join(" ")
    };
    let lines: String = (0..40).map(|i| serde_json::json!({"text": story(i)}).to_string() + "\n").collect();
    let file = folder.join("stories.jsonl");
    fs::write(&file, lines).unwrap();
    vec![file]
}

/// All numbers of a tensor, row after row.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
