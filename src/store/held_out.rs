//! The held-out part of a store, `eval.safetensors`: what evaluation needs so that the part of the model
//! before the hook is not run again for every trial.
//!
//! S sequences of P tokens, activation width D, all numbers float32 whatever the format of training rows:
//!
//! | tensor | shape | what |
//! |---|---|---|
//! | `tokens` | (S, P) u32 | the tokens |
//! | `acts` | (S, P, D) | activations at the hook |
//! | `carry_0` … | (S, P, W) | what else the model needs to go on from the hook |
//! | `loss_clean`, `loss_ablated` | (S, P-1) | next-token loss in nats, as is and with zeros at the hook |
//! | `kl_ablated` | (S, P) | KL(model, model with zeros at the hook) in nats |
//! | `special_ids` | (any) u32 | the tokenizer's special tokens |
//!
//! Rows that no language model made have no tokens and no losses: then there is `acts` alone.

use super::error::StoreError;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;

/// The held-out part, as it is given to [`super::StoreWriter::finish`].
#[derive(Debug, Clone, PartialEq)]
pub struct EvalPart {
    /// Tokens in one sequence (P).
    pub context_size: usize,
    /// Tokens (S, P).
    pub tokens: Vec<u32>,
    /// Activations at the hook (S, P, D).
    pub acts: Vec<f32>,
    /// Width W and values (S, P, W) of everything else the model carries past the hook.
    pub carry: Vec<(usize, Vec<f32>)>,
    /// Next-token loss in nats (S, P-1).
    pub loss_clean: Vec<f32>,
    /// The same with zeros at the hook (S, P-1).
    pub loss_ablated: Vec<f32>,
    /// KL(model, model with zeros at the hook) in nats (S, P).
    pub kl_ablated: Vec<f32>,
    /// The tokenizer's special tokens.
    pub special_ids: Vec<u32>,
}

/// The held-out part, read from a store: slices of the mapped file.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalView<'a> {
    /// Sequences (S).
    pub sequences: usize,
    /// Tokens in one sequence (P).
    pub context_size: usize,
    /// Activation width (D).
    pub width: usize,
    /// Tokens (S, P); empty, as everything below but `acts`, for rows that no language model made.
    pub tokens: &'a [u32],
    /// Activations at the hook (S, P, D).
    pub acts: &'a [f32],
    /// Width W and values (S, P, W) of everything else the model carries past the hook.
    pub carry: Vec<(usize, &'a [f32])>,
    /// Next-token loss in nats (S, P-1).
    pub loss_clean: &'a [f32],
    /// The same with zeros at the hook (S, P-1).
    pub loss_ablated: &'a [f32],
    /// KL(model, model with zeros at the hook) in nats (S, P).
    pub kl_ablated: &'a [f32],
    /// The tokenizer's special tokens.
    pub special_ids: &'a [u32],
}

/// The sizes that everything in the held-out part follows from.
#[derive(Debug, Clone, Copy)]
pub(super) struct EvalShape {
    pub(super) sequences: usize,
    pub(super) context_size: usize,
    pub(super) width: usize,
    /// Whether a language model made it, so that there are tokens and losses.
    pub(super) of_model: bool,
}

impl EvalPart {
    /// Rows that no language model made.
    pub fn of_rows(acts: Vec<f32>) -> Self {
        Self {
            context_size: 1,
            tokens: Vec::new(),
            acts,
            carry: Vec::new(),
            loss_clean: Vec::new(),
            loss_ablated: Vec::new(),
            kl_ablated: Vec::new(),
            special_ids: Vec::new(),
        }
    }

    /// Checks all sizes against each other and against the store; returns the shape.
    pub(super) fn shape(
        &self,
        context_size: usize,
        width: usize,
        of_model: bool,
    ) -> Result<EvalShape, StoreError> {
        let expect = |what: &str, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            Err(StoreError::Shape { what: format!("held-out `{what}`"), found, expected })
        };
        expect("context_size", self.context_size, context_size)?;
        let tokens = if of_model { self.tokens.len() } else { self.acts.len() / width };
        let sequences = tokens / context_size;
        if sequences == 0 {
            return Err(StoreError::Empty { what: "held-out sequences" });
        }
        let (tokens, losses) = (sequences * context_size, sequences * (context_size - 1));
        expect("acts", self.acts.len(), tokens * width)?;
        if !of_model {
            let others = [&self.loss_clean, &self.loss_ablated, &self.kl_ablated].map(Vec::len);
            let found =
                others.iter().sum::<usize>() + self.tokens.len() + self.carry.len() + self.special_ids.len();
            expect("what only a model makes", found, 0)?;
            return Ok(EvalShape { sequences, context_size, width, of_model });
        }
        expect("tokens", self.tokens.len(), tokens)?;
        for (i, (carry_width, values)) in self.carry.iter().enumerate() {
            expect(&carry_name(i), values.len(), tokens * carry_width)?;
        }
        expect("loss_clean", self.loss_clean.len(), losses)?;
        expect("loss_ablated", self.loss_ablated.len(), losses)?;
        expect("kl_ablated", self.kl_ablated.len(), tokens)?;
        Ok(EvalShape { sequences, context_size, width, of_model })
    }

    /// The bytes of `eval.safetensors`, for a checked part.
    pub(super) fn render(&self, shape: EvalShape) -> Vec<u8> {
        let EvalShape { sequences: s, context_size: p, width: d, of_model } = shape;
        let ids =
            |values, shape: Vec<usize>| view(Dtype::U32, shape, bytemuck::cast_slice::<u32, u8>(values));
        let floats =
            |values, shape: Vec<usize>| view(Dtype::F32, shape, bytemuck::cast_slice::<f32, u8>(values));
        if !of_model {
            let acts = [("acts", floats(&self.acts, vec![s, p, d]))];
            return safetensors::serialize(acts, None).expect("invariant: one tensor serialises");
        }
        let mut tensors = vec![
            ("tokens".to_owned(), ids(&self.tokens, vec![s, p])),
            ("acts".to_owned(), floats(&self.acts, vec![s, p, d])),
            ("loss_clean".to_owned(), floats(&self.loss_clean, vec![s, p - 1])),
            ("loss_ablated".to_owned(), floats(&self.loss_ablated, vec![s, p - 1])),
            ("kl_ablated".to_owned(), floats(&self.kl_ablated, vec![s, p])),
            ("special_ids".to_owned(), ids(&self.special_ids, vec![self.special_ids.len()])),
        ];
        for (i, (carry_width, values)) in self.carry.iter().enumerate() {
            tensors.push((carry_name(i), floats(values, vec![s, p, *carry_width])));
        }
        safetensors::serialize(tensors, None).expect("invariant: names differ and shapes agree with lengths")
    }
}

impl<'a> EvalView<'a> {
    /// Reads the bytes of `eval.safetensors`, which start at an address divisible by 8; `path` is for messages.
    pub(super) fn parse(path: &Path, bytes: &'a [u8], shape: EvalShape) -> Result<Self, StoreError> {
        let EvalShape { sequences: s, context_size: p, width: d, of_model } = shape;
        let bad = |reason: String| StoreError::BadPart { path: path.to_path_buf(), reason };
        let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let tensor = |name: &str, dtype: Dtype| {
            let tensor = file.tensor(name).map_err(|error| bad(error.to_string()))?;
            if tensor.dtype() != dtype {
                return Err(bad(format!("tensor `{name}` is {:?}, expected {dtype:?}", tensor.dtype())));
            }
            Ok(tensor)
        };
        let of_shape = |name: &str, dtype: Dtype, shape: &[usize]| {
            let tensor = tensor(name, dtype)?;
            if tensor.shape() != shape {
                return Err(bad(format!(
                    "tensor `{name}` has shape {:?}, expected {shape:?}",
                    tensor.shape()
                )));
            }
            Ok(tensor.data())
        };
        let floats = |name: &str, shape: &[usize]| {
            bytemuck::try_cast_slice(of_shape(name, Dtype::F32, shape)?)
                .map_err(|error| bad(format!("tensor `{name}`: {error}")))
        };
        let ids = |name: &str, data: &'a [u8]| {
            bytemuck::try_cast_slice(data).map_err(|error| bad(format!("tensor `{name}`: {error}")))
        };
        if !of_model {
            return Ok(Self {
                sequences: s,
                context_size: p,
                width: d,
                tokens: &[],
                acts: floats("acts", &[s, p, d])?,
                carry: Vec::new(),
                loss_clean: &[],
                loss_ablated: &[],
                kl_ablated: &[],
                special_ids: &[],
            });
        }
        let mut carry = Vec::new();
        while let Ok(tensor) = file.tensor(&carry_name(carry.len())) {
            let carry_width = tensor.shape().last().copied().unwrap_or(0);
            carry.push((carry_width, floats(&carry_name(carry.len()), &[s, p, carry_width])?));
        }
        Ok(Self {
            sequences: s,
            context_size: p,
            width: d,
            tokens: ids("tokens", of_shape("tokens", Dtype::U32, &[s, p])?)?,
            acts: floats("acts", &[s, p, d])?,
            carry,
            loss_clean: floats("loss_clean", &[s, p.saturating_sub(1)])?,
            loss_ablated: floats("loss_ablated", &[s, p.saturating_sub(1)])?,
            kl_ablated: floats("kl_ablated", &[s, p])?,
            special_ids: ids("special_ids", tensor("special_ids", Dtype::U32)?.data())?,
        })
    }
}

fn carry_name(index: usize) -> String {
    format!("carry_{index}")
}

fn view(dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> TensorView<'_> {
    TensorView::new(dtype, shape, bytes).expect("invariant: shapes agree with lengths")
}
