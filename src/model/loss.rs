//! What a token's logits say: its loss, and how far two models' predictions lie apart.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::mlp::contiguous;
use super::parallel::for_each_row;
use super::{ModelError, vector};

/// Next-token cross-entropy in nats, (B, P-1): the loss of predicting token p+1 from position p.
///
/// `logits` is (B, P, V) in f32, `tokens` (B, P) in u32. Each is `ln(sum(exp(logits))) - logit of the token`, the
/// sum gathered in f64.
///
/// # Errors
/// If the shapes don't go together or a token is outside the logits.
pub fn per_token_loss(logits: &Tensor, tokens: &Tensor) -> std::result::Result<Tensor, ModelError> {
    let wrong = || ModelError::InputShape {
        what: "the tensor of logits".to_owned(),
        found: logits.dims().to_vec(),
        expected: format!("(sequences, positions, vocabulary) for tokens of shape {:?}", tokens.dims()),
    };
    let &[n_sequences, positions, vocab_size] = logits.dims() else { return Err(wrong()) };
    if tokens.dims() != [n_sequences, positions] || positions == 0 {
        return Err(wrong());
    }
    let targets = next_tokens(tokens, vocab_size)?.into_iter().flatten().collect();
    Ok(losses_of_rows(logits, targets)?.reshape((n_sequences, positions - 1))?)
}

/// For each place of tokens (B, P), row by row, its number and the token that follows; nothing where a sequence ends.
///
/// # Errors
/// If a token is outside the vocabulary.
pub(super) fn next_tokens(
    tokens: &Tensor,
    vocab_size: usize,
) -> std::result::Result<Vec<Option<(usize, u32)>>, ModelError> {
    let positions = tokens.dim(candle_core::D::Minus1)?;
    let tokens = tokens.flatten_all()?.to_vec1::<u32>()?;
    if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(ModelError::TokenOutOfRange { token, vocab_size });
    }
    let next = |at: usize| (!(at + 1).is_multiple_of(positions)).then(|| (at, tokens[at + 1]));
    Ok((0..tokens.len()).map(next).collect())
}

/// Cross-entropy in nats, (n), of n rows of logits (.., V) and of the token that each has to predict.
pub(super) fn losses_of_rows(logits: &Tensor, targets: Vec<(usize, u32)>) -> Result<Tensor> {
    logits.contiguous()?.apply_op1_no_bwd(&RowLosses { targets })
}

struct RowLosses {
    /// Row, token.
    targets: Vec<(usize, u32)>,
}

impl CustomOp1 for RowLosses {
    fn name(&self) -> &'static str {
        "next-token-loss"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        // A step of the loop costs about this many elementary operations.
        const COST: usize = 8;
        let vocab_size = layout.shape().dims().last().copied().unwrap_or(1);
        let logits = contiguous(storage, layout)?;
        let mut loss = vec![0f32; self.targets.len()];
        for_each_row(&mut loss, 1, COST * vocab_size, |nth, loss| {
            let (row, token) = self.targets[nth];
            let logits = &logits[row * vocab_size..(row + 1) * vocab_size];
            loss[0] = (vector::log_sum_exp(logits) - f64::from(logits[token as usize])) as f32;
        });
        let n = loss.len();
        Ok((CpuStorage::F32(loss), Shape::from(n)))
    }
}

/// KL divergence in nats, (B, P), of the predictions at each position: KL(`clean` || `other`), both logits of
/// shape (B, P, V) in f32.
///
/// # Errors
/// If the shapes differ.
pub fn per_token_kl(clean: &Tensor, other: &Tensor) -> std::result::Result<Tensor, ModelError> {
    if clean.dims().len() != 3 || clean.dims() != other.dims() {
        return Err(ModelError::InputShape {
            what: "the second tensor of logits".to_owned(),
            found: other.dims().to_vec(),
            expected: format!("the shape of the first, {:?}", clean.dims()),
        });
    }
    Ok(clean.contiguous()?.apply_op2_no_bwd(&other.contiguous()?, &Divergence)?)
}

struct Divergence;

impl CustomOp2 for Divergence {
    fn name(&self) -> &'static str {
        "kl-divergence"
    }

    fn cpu_fwd(
        &self,
        clean: &CpuStorage,
        clean_layout: &Layout,
        other: &CpuStorage,
        other_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        // A step of the loop costs about this many elementary operations.
        const COST: usize = 20;
        let (n_sequences, positions, vocab_size) = clean_layout.shape().dims3()?;
        let (clean, other) = (contiguous(clean, clean_layout)?, contiguous(other, other_layout)?);
        let mut kl = vec![0f32; n_sequences * positions];
        for_each_row(&mut kl, 1, COST * vocab_size, |row, kl| {
            let logits = row * vocab_size..(row + 1) * vocab_size;
            kl[0] = vector::kl_divergence(&clean[logits.clone()], &other[logits]) as f32;
        });
        Ok((CpuStorage::F32(kl), Shape::from((n_sequences, positions))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_sure_prediction_costs_nothing_and_an_even_one_ln_v() {
        let logits = Tensor::new(
            &[[[0f32, 50.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [9.0, 9.0, 9.0, 0.0]]],
            &Device::Cpu,
        );
        let tokens = Tensor::new(&[[0u32, 1, 3]], &Device::Cpu).unwrap();
        let loss = per_token_loss(&logits.unwrap(), &tokens).unwrap().to_vec2::<f32>().unwrap();
        assert!(loss[0][0].abs() < 1e-6);
        assert!((loss[0][1] - 4f32.ln()).abs() < 1e-6);
        assert_eq!(loss[0].len(), 2);
    }

    #[test]
    fn one_position_has_nothing_to_predict_and_misfits_are_errors() {
        let logits = Tensor::zeros((2, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let tokens = |token: u32| Tensor::new(&[[0u32], [token]], &Device::Cpu).unwrap();
        assert_eq!(per_token_loss(&logits, &tokens(2)).unwrap().dims(), [2, 0]);
        assert!(per_token_loss(&logits, &tokens(3)).unwrap_err().to_string().contains("token 3"));
        let long = Tensor::new(&[[0u32, 1]], &Device::Cpu).unwrap();
        assert!(per_token_loss(&logits, &long).unwrap_err().to_string().contains("[2, 1, 3]"));
    }

    #[test]
    fn divergence_is_what_its_formula_says() {
        let clean = [0.5f32, -1.0, 2.0, 0.0, 30.0, -80.0, -300.0, 1.0];
        let other = [0.1f32, 1.0, -2.0, 0.5, 1.0, 2.0, f32::NEG_INFINITY, 4.0];
        let tensor = |values: &[f32]| Tensor::from_slice(values, (1, 2, 4), &Device::Cpu).unwrap();
        let kl = per_token_kl(&tensor(&clean), &tensor(&other))
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for (row, kl) in kl.iter().enumerate() {
            let log_probabilities = |values: &[f32]| -> Vec<f64> {
                let values = &values[row * 4..row * 4 + 4];
                let sum: f64 = values.iter().map(|value| f64::from(*value).exp()).sum();
                values.iter().map(|value| f64::from(*value) - sum.ln()).collect()
            };
            let expected: f64 = log_probabilities(&clean)
                .iter()
                .zip(log_probabilities(&other))
                .map(|(p, q)| if p.exp() > 1e-40 { p.exp() * (p - q) } else { 0.0 })
                .sum();
            assert!((f64::from(*kl) - expected).abs() < 1e-5 * (1.0 + expected), "{kl} {expected}");
        }
        let itself = per_token_kl(&tensor(&clean), &tensor(&clean))
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(itself.iter().all(|kl| *kl < 1e-6));
    }
}
