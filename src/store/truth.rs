//! The true features of toy data, `truth.safetensors`, for stores whose rows were made from known features.
//!
//! N features in D dimensions, S held-out rows:
//!
//! | tensor | shape | what |
//! |---|---|---|
//! | `features` | (N, D) f32 | directions, of norm 1 |
//! | `norms` | (N) f32 | how long each is in the rows at strength 1 |
//! | `probabilities` | (N) f32 | how often each is active |
//! | `eval_active` | (S) u32 | how many are active in each held-out row |

use super::error::StoreError;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// The true features, as they are given to [`super::StoreWriter::finish_with`].
#[derive(Debug, Clone, PartialEq)]
pub struct TruthPart {
    /// Directions of norm 1 (N, D).
    pub features: Vec<f32>,
    /// Norms in the rows (N).
    pub norms: Vec<f32>,
    /// Firing probabilities (N).
    pub probabilities: Vec<f32>,
    /// Active features of each held-out row (S).
    pub eval_active: Vec<u32>,
}

/// The true features, read from a store.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TruthView<'a> {
    /// Directions of norm 1 (N, D).
    pub features: &'a [f32],
    /// Norms in the rows (N).
    pub norms: &'a [f32],
    /// Firing probabilities (N).
    pub probabilities: &'a [f32],
    /// Active features of each held-out row (S).
    pub eval_active: &'a [u32],
}

impl TruthPart {
    /// The bytes of `truth.safetensors`; refuses parts that do not fit each other or the store.
    pub(super) fn render(&self, width: usize, eval_rows: usize) -> Result<Vec<u8>, StoreError> {
        let n = self.norms.len();
        for (what, found, expected) in [
            ("features", self.features.len(), n * width),
            ("probabilities", self.probabilities.len(), n),
            ("eval_active", self.eval_active.len(), eval_rows),
        ] {
            if found != expected {
                return Err(StoreError::Shape { what: format!("true `{what}`"), found, expected });
            }
        }
        if n == 0 {
            return Err(StoreError::Empty { what: "true features" });
        }
        let view = |dtype, shape: Vec<usize>, bytes| {
            TensorView::new(dtype, shape, bytes).expect("invariant: shapes and lengths agree")
        };
        let tensors = [
            ("features", view(Dtype::F32, vec![n, width], bytemuck::cast_slice(&self.features))),
            ("norms", view(Dtype::F32, vec![n], bytemuck::cast_slice(&self.norms))),
            ("probabilities", view(Dtype::F32, vec![n], bytemuck::cast_slice(&self.probabilities))),
            ("eval_active", view(Dtype::U32, vec![eval_rows], bytemuck::cast_slice(&self.eval_active))),
        ];
        Ok(safetensors::serialize(tensors, None).expect("invariant: four tensors serialise"))
    }
}

impl<'a> TruthView<'a> {
    /// Reads the bytes of `truth.safetensors`, which start at an address divisible by 8; `path` is for messages.
    pub(super) fn parse(
        path: &Path,
        bytes: &'a [u8],
        width: usize,
        eval_rows: usize,
    ) -> Result<Self, StoreError> {
        let bad = |reason: String| StoreError::BadPart { path: path.to_path_buf(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let tensor = |name: &str| file.tensor(name).map_err(|error| bad(error.to_string()));
        let n = tensor("norms")?.shape().first().copied().unwrap_or(0);
        let data = |name: &str, dtype: Dtype, shape: &[usize]| {
            let tensor = tensor(name)?;
            if n == 0 || tensor.dtype() != dtype || tensor.shape() != shape {
                let (found, sizes) = (tensor.dtype(), tensor.shape());
                return Err(bad(format!(
                    "tensor `{name}` is {found:?} {sizes:?}, expected {dtype:?} {shape:?}"
                )));
            }
            Ok(tensor.data())
        };
        let floats = |name: &str, shape: &[usize]| {
            let values: &'a [f32] = bytemuck::try_cast_slice(data(name, Dtype::F32, shape)?)
                .map_err(|error| bad(format!("tensor `{name}`: {error}")))?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(values),
                Some(at) => Err(bad(format!("tensor `{name}` holds {} at {at}", values[at]))),
            }
        };
        Ok(Self {
            features: floats("features", &[n, width])?,
            norms: floats("norms", &[n])?,
            probabilities: floats("probabilities", &[n])?,
            eval_active: bytemuck::try_cast_slice(data("eval_active", Dtype::U32, &[eval_rows])?)
                .map_err(|error| bad(format!("tensor `eval_active`: {error}")))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part() -> TruthPart {
        TruthPart {
            features: vec![1.0, 0.0, 0.0, 0.6, 0.8, 0.0],
            norms: vec![1.0, 0.5],
            probabilities: vec![0.25, 0.125],
            eval_active: vec![0, 2, 1],
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let part = part();
        let bytes = part.render(3, 3).unwrap();
        // As the mapped file would be.
        let aligned: Vec<u64> =
            bytemuck::pod_collect_to_vec(&[&bytes[..], &[0; 8]].concat()[..bytes.len() / 8 * 8 + 8]);
        let bytes = &bytemuck::cast_slice::<u64, u8>(&aligned)[..bytes.len()];
        let view = TruthView::parse(Path::new("t"), bytes, 3, 3).unwrap();
        assert_eq!((view.features, view.eval_active), (&part.features[..], &part.eval_active[..]));
        assert_eq!((view.norms, view.probabilities), (&part.norms[..], &part.probabilities[..]));
        let message = TruthView::parse(Path::new("t"), bytes, 2, 3).unwrap_err().to_string();
        assert_eq!(message, "`t` is not usable: tensor `features` is F32 [2, 3], expected F32 [2, 2]");
        assert!(TruthView::parse(Path::new("t"), bytes, 3, 4).is_err());
    }

    #[test]
    fn parts_must_fit() {
        assert!(matches!(part().render(2, 3), Err(StoreError::Shape { found: 6, expected: 4, .. })));
        assert!(matches!(part().render(3, 2), Err(StoreError::Shape { found: 3, expected: 2, .. })));
        let none = TruthPart { features: vec![], norms: vec![], probabilities: vec![], eval_active: vec![] };
        assert!(matches!(none.render(3, 0), Err(StoreError::Empty { .. })));
    }
}
