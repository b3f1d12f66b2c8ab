//! What a transcoder has beyond an SAE: an output of its own, whose width may be another.
//!
//! In memory its weights are those of an SAE whose width is the greater of the two, with zeros where there is
//! no input or no output. Inputs and outputs are padded alike, so nothing but exact zeros is added to any sum: the
//! zeros of the weights have gradient 0 and stay, and every kernel serves both kinds. On disk there is no padding.

use crate::trial::Architecture;
use std::{borrow::Cow, ops::Range};

/// The name of a transcoder in `cfg.json`. SAELens (6.54) has classes for the first and the last; that of the
/// TopK one is our own, which SAELens refuses. `None`: transcoders are not of this architecture.
pub(super) fn transcoder_name(architecture: &Architecture) -> Option<&'static str> {
    match architecture {
        Architecture::Standard { .. } => Some("transcoder"),
        Architecture::TopK { .. } => Some("topk_transcoder"),
        Architecture::JumpRelu { .. } => Some("jumprelu_transcoder"),
        _ => None,
    }
}

/// The architecture that a name of [`transcoder_name`] means.
pub(super) fn transcoder_architecture(name: &str) -> Option<&'static str> {
    match name {
        "transcoder" => Some("standard"),
        "topk_transcoder" => Some("topk"),
        "jumprelu_transcoder" => Some("jumprelu"),
        _ => None,
    }
}

/// Rows of width `from` as rows of width `to`: cut off, or filled up with zeros.
pub(super) fn resized(rows: &[f32], from: usize, to: usize) -> Cow<'_, [f32]> {
    if from == to {
        return Cow::Borrowed(rows);
    }
    let mut out = Vec::new();
    columns(rows, from, 0..from.min(to), to, &mut out);
    Cow::Owned(out)
}

/// Replaces `out` by some columns of rows of width `stride`, filled up with zeros to rows of `width`.
pub fn columns(rows: &[f32], stride: usize, columns: Range<usize>, width: usize, out: &mut Vec<f32>) {
    let n = rows.len() / stride;
    out.clear();
    out.resize(n * width, 0.0);
    for (row, out) in rows.chunks_exact(stride).zip(out.chunks_exact_mut(width)) {
        out[..columns.len()].copy_from_slice(&row[columns.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_and_filled_up() {
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(*resized(&rows, 3, 2), [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(*resized(&rows, 3, 4), [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0]);
        assert_eq!(*resized(&rows, 3, 3), rows);
        let mut out = vec![9.0; 20];
        columns(&rows, 3, 1..3, 3, &mut out);
        assert_eq!(out, [2.0, 3.0, 0.0, 5.0, 6.0, 0.0]);
    }

    #[test]
    fn names_go_both_ways() {
        for name in ["transcoder", "topk_transcoder", "jumprelu_transcoder"] {
            let word = transcoder_architecture(name).unwrap();
            assert!(["standard", "topk", "jumprelu"].contains(&word));
        }
        assert_eq!(transcoder_name(&Architecture::jumprelu_trained_otherwise()), Some("jumprelu_transcoder"));
        assert_eq!(transcoder_name(&Architecture::Gated { l1_coefficient: 1.0, l1_warm_up_steps: 0 }), None);
        assert_eq!(transcoder_architecture("skip_transcoder"), None);
    }
}
