//! What options need to know of the activations before the first step: the norm above which rows are left out, and the
//! middle that the decoder's bias starts at.
//!
//! Both are taken from the first rows of the run, in the order in which it will see them. The store is shuffled, so
//! they are a fair sample; and they are the same rows when the run is continued.

use super::{
    centre::{CENTRE_ROWS, geometric_median, mean},
    filter::{MEDIAN_ROWS, NormFilter, median, norm},
    run::{ReadBatch, TrainError},
    trainer::Trainer,
};
use crate::{kernels::Pool, sae::RowScales, trial::BDecInit};

/// Prepares a trainer that is where its checkpoint, if any, left it.
pub(super) fn prepare(
    trainer: &mut Trainer,
    read_batch: &ReadBatch<'_>,
    pool: &Pool,
) -> Result<(), TrainError> {
    let multiple = trainer.train.options.max_norm_multiple;
    if multiple > 0.0 {
        let d_in = trainer.params.d_in();
        let mut norms = Vec::new();
        first_rows(trainer, MEDIAN_ROWS, read_batch, &mut |rows| {
            norms.extend(rows.chunks_exact(d_in).map(norm));
        })?;
        trainer.filter = Some(NormFilter::new(multiple * median(norms)));
    }
    let method = trainer.train.options.b_dec_init_method;
    if method != BDecInit::Zeros && trainer.steps == 0 {
        let rows = scaled_rows(trainer, read_batch, pool)?;
        let d_in = trainer.params.d_in();
        let centre = match method {
            _ if rows.is_empty() => return Ok(()),
            BDecInit::Zeros => return Ok(()),
            BDecInit::Mean => mean(&rows, d_in),
            BDecInit::GeometricMedian => geometric_median(&rows, d_in),
        };
        trainer.params.b_dec.iter_mut().zip(centre).for_each(|(b, x)| *b = x as f32);
    }
    Ok(())
}

/// The first rows that are trained on, as the SAE sees them.
fn scaled_rows(
    trainer: &mut Trainer,
    read_batch: &ReadBatch<'_>,
    pool: &Pool,
) -> Result<Vec<f32>, TrainError> {
    let d_in = trainer.params.d_in();
    let mut filter = trainer.filter.take();
    let mut rows = Vec::new();
    let read = first_rows(trainer, CENTRE_ROWS, read_batch, &mut |batch| {
        rows.extend_from_slice(filter.as_mut().map_or(batch, |filter| filter.keep(batch, d_in)));
    });
    trainer.filter = filter;
    read?;
    let mut scaled = vec![0.0; rows.len()];
    trainer.normalizer.apply(pool, &rows, d_in, &mut scaled, &mut RowScales::default());
    Ok(scaled)
}

/// Hands on the first `n` rows of the run, or all if it has fewer, a batch at a time.
fn first_rows(
    trainer: &Trainer,
    n: usize,
    read_batch: &ReadBatch<'_>,
    take: &mut dyn FnMut(&[f32]),
) -> Result<(), TrainError> {
    let (batch_size, d_in) = (trainer.train.batch_size, trainer.params.d_in());
    let mut batch = vec![0.0; batch_size * d_in];
    let mut left = n;
    for step in 0..trainer.train.steps() {
        if left == 0 {
            break;
        }
        read_batch(step, &mut batch)?;
        let n_rows = left.min(batch_size);
        take(&batch[..n_rows * d_in]);
        left -= n_rows;
    }
    Ok(())
}
