//! The training step on candle tensors, for the devices that candle drives (CUDA, Metal).
//!
//! The formulas of `kernels::reference`, with explicit gradients: no autograd graph is kept, and parameters,
//! moments and gradients stay on the device. A step is launched and ended: between the two the host may prepare and
//! upload the next batch. Whether a step's loss and gradients are finite is decided on the device, so nothing waits
//! before the update, but for [`pursuit`], which asks now and then whether it is done; one transfer in the end brings
//! losses, gradient norm and firing counts to the host, losses as sums over rows that are added up there in double
//! precision. The tests run on candle's CPU device.
//!
//! [`topk`] and [`pursuit`] gather decoder rows; all else is dense: ReLU latents are many while an SAE is young, and a
//! batch's largest fall to tokens unevenly.

mod auxiliary;
mod batch;
mod dense;
mod gated;
mod jumprelu;
mod levels;
mod params;
mod pursuit;
mod select;
mod standard;
#[cfg(test)]
mod tests;
mod topk;
mod values;

pub(super) use batch::Aim;

use super::{device, run::TrainError, steps::Step};
use crate::kernels::{AdamStep, Params, PursuitSummary, StepLosses};
use auxiliary::Dead;
use batch::Batch;
use candle_core::{DType, Device, Result, Tensor, bail};
use dense::{Context, Found};
use params::{State, TensorParams};
use values::Products;

/// What a step came to, on the host.
#[derive(Debug)]
pub(super) struct TensorStep {
    /// Losses of the batch, before the update.
    pub(super) losses: StepLosses,
    /// In a Matryoshka SAE, those of all levels but the last.
    pub(super) levels: Vec<f64>,
    /// L2 norm of all gradients together, before they are clipped; not finite if the step was left out.
    pub(super) grad_norm: f64,
    /// (F) tokens of the batch on which each latent fired.
    pub(super) fired: Vec<u32>,
    /// The least value kept, where a choice over the batch was made and kept any.
    pub(super) least: Option<f32>,
    /// What a matching pursuit came to.
    pub(super) pursuit: Option<PursuitSummary>,
}

/// How SAEs are trained on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Whether products are in bfloat16.
    pub(super) autocast: bool,
    /// Whether the decoder's rows are kept at norm 1.
    pub(super) unit_rows: bool,
    /// Half of it is the most dead latents in an auxiliary loss of a TopK step.
    pub(super) aux_width: usize,
}

/// An SAE in training on a device.
#[derive(Debug)]
pub(super) struct TensorTrainer {
    device: Device,
    settings: Settings,
    state: State,
    staged: Option<Batch>,
    launched: Option<Launched>,
    /// Of the last step, (B, D).
    reconstruction: Option<Tensor>,
}

/// A step whose results are still on the device.
#[derive(Debug)]
struct Launched {
    /// All of them one after the other.
    values: Tensor,
    /// Lengths of the sums of each kind, with their factors.
    sparsity: Vec<(usize, f64)>,
    auxiliary: Vec<(usize, f64)>,
    n_tokens: usize,
    d_sae: usize,
    has_least: bool,
    /// Of a matching pursuit.
    residual_threshold: Option<f64>,
}

impl TensorTrainer {
    /// Uploads parameters and Adam's moments.
    pub(super) fn new(
        host: [&Params; 3],
        settings: Settings,
        device: &Device,
    ) -> std::result::Result<Self, TrainError> {
        let state = upload(host, device).map_err(device::failed(device))?;
        let device = device.clone();
        Ok(Self { device, settings, state, staged: None, launched: None, reconstruction: None })
    }

    /// Overwrites parameters and Adam's moments on the device with those of the host.
    pub(super) fn upload(&mut self, host: [&Params; 3]) -> std::result::Result<(), TrainError> {
        self.state = upload(host, &self.device).map_err(device::failed(&self.device))?;
        Ok(())
    }

    /// Overwrites parameters and Adam's moments on the host with those of the device.
    pub(super) fn download(&self, [params, m, v]: [&mut Params; 3]) -> std::result::Result<(), TrainError> {
        let State { params: of_params, m: of_m, v: of_v } = &self.state;
        for (tensors, host) in [(of_params, params), (of_m, m), (of_v, v)] {
            tensors.download(host).map_err(device::failed(&self.device))?;
        }
        Ok(())
    }

    /// The reconstruction (B, D) of the last step's batch; empty before the first step.
    pub(super) fn reconstruction(&self) -> std::result::Result<Vec<f32>, TrainError> {
        let Some(reconstruction) = &self.reconstruction else { return Ok(Vec::new()) };
        reconstruction.flatten_all().and_then(|flat| flat.to_vec1()).map_err(device::failed(&self.device))
    }

    /// Uploads the batch `x` (B, D) of the next step.
    pub(super) fn stage(&mut self, x: &[f32], aim: Option<Aim<'_>>) -> std::result::Result<(), TrainError> {
        let d_in = self.state.params.b_dec.elem_count();
        let batch = Batch::upload(x, d_in, aim, &self.device).map_err(device::failed(&self.device))?;
        self.staged = Some(batch);
        Ok(())
    }

    /// Launches a step on the staged batch: gradients, global clip, Adam. When loss or gradient are not finite, nothing
    /// changes. `dead` has one flag per latent, as it stands before this step.
    pub(super) fn launch(
        &mut self,
        step: &Step<'_>,
        adam: &AdamStep,
        dead: &[bool],
    ) -> std::result::Result<(), TrainError> {
        self.try_launch(step, adam, dead).map_err(device::failed(&self.device))
    }

    fn try_launch(&mut self, step: &Step<'_>, adam: &AdamStep, dead: &[bool]) -> Result<()> {
        let Some(batch) = self.staged.take() else { bail!("a step has a batch") };
        if let Step::JumpRelu(_) = step {
            jumprelu::raise_thresholds(&mut self.state.params)?;
        }
        let mut found = self.gradients(step, &batch, dead)?;
        if self.settings.unit_rows {
            found.grads = found.grads.without_parallel(&self.state.params)?;
        }
        let grad_norm = found.grads.norm()?;

        let total = |sums: &Tensor, factor: f64| sums.sum_keepdim(0)? * factor;
        let mut check = (&grad_norm + total(&found.errors, batch.scale)?)?;
        for (sums, factor) in found.sparsity.iter().chain(&found.auxiliary) {
            check = (check + total(sums, *factor)?)?;
        }
        // 0 of any finite number, NaN else.
        let ok = (&check * 0.0)?.eq(0_f32)?;
        self.state.update(adam, &found.grads, &grad_norm, &ok, self.settings.unit_rows)?;

        let lengths =
            |sums: &[(Tensor, f64)]| sums.iter().map(|(sums, factor)| (sums.elem_count(), *factor)).collect();
        let (sparsity, auxiliary) = (lengths(&found.sparsity), lengths(&found.auxiliary));
        let has_least = found.least.is_some();
        let residual_threshold = match step {
            Step::MatchingPursuit(step) => Some(step.pursuit.residual_threshold),
            _ => None,
        };
        let (n_tokens, d_sae) = (batch.n_tokens()?, found.fired.elem_count());
        let mut values = vec![check, grad_norm, found.errors, found.fired];
        values.extend(found.sparsity.into_iter().chain(found.auxiliary).map(|(sums, _)| sums));
        values.extend(found.least);
        values.extend(found.active);
        let values = Tensor::cat(&values, 0)?;
        let launched =
            Launched { values, sparsity, auxiliary, n_tokens, d_sae, has_least, residual_threshold };
        self.launched = Some(launched);
        self.reconstruction = Some(found.reconstruction);
        Ok(())
    }

    fn gradients(&self, step: &Step<'_>, batch: &Batch, dead: &[bool]) -> Result<Found> {
        let context = Context {
            products: Products::new(self.settings.autocast),
            params: &self.state.params,
            batch,
            apply_b_dec_to_input: step.apply_b_dec_to_input(),
        };
        let half = self.settings.aux_width / 2;
        let dead_of = |coefficient: f64, latents: std::ops::Range<usize>| {
            if coefficient == 0.0 { Ok(None) } else { Dead::of(dead, latents, half, &self.device) }
        };
        match step {
            Step::Standard(step) => standard::standard(&context, step),
            Step::Gated(step) => gated::gated(&context, step),
            Step::TopK { step, by_magnitude } => {
                let dead = dead_of(step.aux_loss_coefficient, 0..dead.len())?;
                topk::topk(&context, step, *by_magnitude, dead.as_ref())
            }
            Step::BatchTopK(step) => {
                let all = 0..dead.len();
                let dead = dead_of(step.aux_loss_coefficient, all.clone())?.map(|dead| (0, dead));
                levels::levels(&context, step, &[all.end], dead.as_slice())
            }
            Step::Matryoshka { step, widths, aux_by_level } => {
                let mut sets = Vec::new();
                let mut first = 0;
                for (nth, &width) in widths.iter().enumerate() {
                    if *aux_by_level || nth + 1 == widths.len() {
                        sets.extend(
                            dead_of(step.aux_loss_coefficient, first..width)?.map(|dead| (nth, dead)),
                        );
                        first = width;
                    }
                }
                levels::levels(&context, step, widths, &sets)
            }
            Step::JumpRelu(step) => jumprelu::jumprelu(&context, step, dead),
            Step::MatchingPursuit(step) => pursuit::matching_pursuit(&context, step),
        }
    }

    /// Waits for the launched step and reads what it came to.
    pub(super) fn end(&mut self) -> std::result::Result<TensorStep, TrainError> {
        self.try_end().map_err(device::failed(&self.device))
    }

    fn try_end(&mut self) -> Result<TensorStep> {
        let Some(launched) = self.launched.take() else { bail!("no step was launched") };
        let values = launched.values.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let mut rest = values.as_slice();
        let mut next = |n: usize| {
            let (values, left) = rest.split_at(n);
            rest = left;
            values
        };
        let (check, grad_norm) = (next(1)[0], next(1)[0]);
        let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
        let scale = 1.0 / launched.n_tokens as f64;
        let errors = next(launched.n_tokens);
        let mse = scale * sum(errors);
        let fired = next(launched.d_sae);
        let mut losses = |lengths: &[(usize, f64)]| -> Vec<f64> {
            lengths.iter().map(|&(n, factor)| factor * sum(next(n))).collect()
        };
        let (sparsity, levels) = (losses(&launched.sparsity), losses(&launched.auxiliary));
        let (sparsity, auxiliary) = (sparsity.iter().sum::<f64>(), levels.iter().sum::<f64>());
        let least = if launched.has_least { next(launched.n_tokens) } else { &[] };
        let pursuit = launched.residual_threshold.map(|threshold| {
            let active = next(launched.n_tokens).iter().map(|&active| active as usize);
            PursuitSummary::of(active.zip(errors.iter().map(|&error| f64::from(error))), threshold)
        });
        let losses = StepLosses {
            overall: mse + sparsity + auxiliary,
            mse,
            sparsity,
            auxiliary,
            l0: scale * sum(fired),
        };
        Ok(TensorStep {
            losses,
            levels,
            // The device's word on what is finite counts.
            grad_norm: f64::from(if check.is_finite() { grad_norm } else { check }),
            // Counts of at most B tokens are exact in f32.
            fired: fired.iter().map(|&count| count as u32).collect(),
            least: least.iter().copied().filter(|&least| least < select::MORE).reduce(f32::min),
            pursuit,
        })
    }
}

fn upload([params, m, v]: [&Params; 3], device: &Device) -> Result<State> {
    let upload = |params| TensorParams::upload(params, device);
    Ok(State { params: upload(params)?, m: upload(m)?, v: upload(v)? })
}
