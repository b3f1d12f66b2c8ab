//! The training step and what it carries from one to the next.
//!
//! [`Trainer`] takes batches from whoever calls it: the loop gives it rows of the store, the golden test the
//! batches of another implementation. Both go through the same code.

use super::{
    device::cpu_only,
    filter::NormFilter,
    firing::Firing,
    metrics::{ExplainedVariance, LogLine},
    run::TrainError,
    schedules::{learning_rate, sparsity_coefficient},
    tensor_step::{Aim, TensorStep, TensorTrainer},
};
use crate::{
    kernels::{self, AdamStep, Params, Pool, Shape, StandardStep, StepLosses, Workspace},
    sae::{self, Normalizer, RowScales, Sae},
    trial::{Architecture, NormalizeActivations, SaeConfig, TrainConfig},
};
use candle_core::Device;
use std::borrow::Cow;

/// All gradients together are clipped to this norm, as in SAELens, where it is no setting either.
const MAX_GRAD_NORM: f64 = 1.0;

/// Adam's epsilon.
const ADAM_EPS: f64 = 1e-8;

/// Everything a run carries from step to step. The public parts are what a checkpoint holds; between steps on a
/// device, weights and moments are those of the last [`Trainer::download`].
pub struct Trainer {
    pub(super) sae: SaeConfig,
    pub(super) train: TrainConfig,
    d_in: usize,
    pub(super) normalizer: Normalizer,
    /// Weights in the scaled space.
    pub params: Params,
    /// Adam's first moments.
    pub m: Params,
    /// Adam's second moments.
    pub v: Params,
    /// Firing counts.
    pub firing: Firing,
    /// Steps done.
    pub steps: u64,
    /// Losses of the last step.
    pub losses: StepLosses,
    /// Where a BatchTopK's threshold has come to: a moving average of the least value kept, from 0.
    pub topk_threshold: f64,
    /// Steps that have moved it.
    pub topk_threshold_updates: u64,
    /// Which rows are trained on, where not all are.
    pub(super) filter: Option<NormFilter>,
    pub(super) grads: Params,
    pub(super) ws: Workspace,
    /// Flags of the dead latents, (F), where the last step needed them.
    pub(super) dead: Vec<bool>,
    pub(super) scaled: Vec<f32>,
    scales: RowScales,
    target: Vec<f32>,
    weight: Vec<f32>,
    /// Takes the place of `ws` and `grads` in a run on a device.
    tensors: Option<TensorTrainer>,
}

/// What one step came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Losses before the update.
    pub losses: StepLosses,
    /// Norm of all gradients together, before they are clipped.
    pub grad_norm: f64,
}

impl StepReport {
    /// Whether the run can go on from here.
    pub fn is_finite(&self) -> bool {
        self.losses.overall.is_finite() && self.grad_norm.is_finite()
    }
}

/// A trained SAE and what training says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The SAE, with everything folded that can be: exactly what belongs on disk.
    pub sae: Sae,
    /// (F) log10 of the firing frequency over the last sampling window plus 1e-10.
    pub sparsity: Vec<f32>,
    /// Losses of the last step.
    pub losses: StepLosses,
    /// Mean latents per token over the last sampling window.
    pub l0: f64,
    /// Latents silent for more than `train.dead_feature_window` steps.
    pub n_dead: u64,
}

impl Trained {
    /// Share of latents that are dead.
    pub fn dead_share(&self) -> f64 {
        self.n_dead as f64 / self.sae.cfg.d_sae as f64
    }
}

impl Trainer {
    /// A run that starts from `params`, whose activations are scaled by `normalizer`.
    pub fn new(
        sae: &SaeConfig,
        train: &TrainConfig,
        d_in: usize,
        params: Params,
        normalizer: Normalizer,
        pool: &Pool,
    ) -> Self {
        let shape = Shape { d_in, d_sae: sae.d_sae, batch: train.batch_size };
        let batch = train.batch_size * d_in;
        let target = if normalizer.is_per_row() { vec![0.0; batch] } else { Vec::new() };
        let mut params = params;
        if train.options.normalize_sae_decoder {
            kernels::set_unit_rows(pool, &mut params);
        }
        Self {
            sae: sae.clone(),
            train: train.clone(),
            d_in,
            normalizer,
            m: params.zeros_like(),
            v: params.zeros_like(),
            grads: params.zeros_like(),
            params,
            firing: Firing::new(sae.d_sae),
            steps: 0,
            losses: StepLosses::default(),
            topk_threshold: 0.0,
            topk_threshold_updates: 0,
            filter: None,
            ws: Workspace::new(shape, pool),
            dead: Vec::new(),
            scaled: vec![0.0; batch],
            scales: RowScales::default(),
            target,
            weight: Vec::new(),
            tensors: None,
        }
    }

    /// Goes on with candle tensors on `device`. Weights and moments stay there from now on.
    ///
    /// # Errors
    /// Only standard SAEs without options beyond SAELens train on tensors; or the device has not the memory.
    pub fn move_to(&mut self, device: &Device) -> Result<(), TrainError> {
        if let Some(what) = cpu_only(&self.sae, &self.train) {
            return Err(TrainError::Setting(format!(
                "{what} trains on the CPU so far; set devices.use = [\"cpu\"]"
            )));
        }
        self.tensors = Some(TensorTrainer::new([&self.params, &self.m, &self.v], device)?);
        self.grads = Params::default();
        Ok(())
    }

    /// Brings weights and moments up to date on the host.
    ///
    /// # Errors
    /// The device fails.
    pub fn download(&mut self) -> Result<(), TrainError> {
        let Self { tensors, params, m, v, .. } = self;
        tensors.as_ref().map_or(Ok(()), |tensors| tensors.download([params, m, v]))
    }

    /// One step on the batch `x` (B, D) of activations as the model made them. When the report is not
    /// finite the run is over, and the weights stay those from before the step.
    ///
    /// # Errors
    /// The device fails, in a run on one.
    pub fn step(&mut self, pool: &Pool, x: &[f32]) -> Result<StepReport, TrainError> {
        assert_eq!(x.len(), self.train.batch_size * self.d_in, "a batch has train.batch_size rows");
        self.firing.begin_step(self.steps, self.train.feature_sampling_window);
        let x = self.filter.as_mut().map_or(x, |filter| filter.keep(x, self.d_in));
        if x.is_empty() {
            // All were left out: nothing to learn, and nothing that did not fire.
            self.scaled.clear();
            self.steps += 1;
            return Ok(StepReport { losses: self.losses, grad_norm: 0.0 });
        }
        let n_rows = x.len() / self.d_in;
        self.scaled.resize(x.len(), 0.0);
        if self.normalizer.is_per_row() {
            self.target.resize(x.len(), 0.0);
        }
        self.normalizer.apply(pool, x, self.d_in, &mut self.scaled, &mut self.scales);
        let is_aimed = self.normalizer.targets(
            &self.scaled,
            &self.scales,
            self.d_in,
            &mut self.target,
            &mut self.weight,
        );
        if self.tensors.is_some() {
            return self.step_on_device(is_aimed);
        }
        if is_aimed {
            self.ws.aim_at(&self.target, &self.weight);
        }
        let losses = self.gradients(pool);
        self.losses = losses;
        let keeps_norms = self.train.options.normalize_sae_decoder;
        let grad_norm = if keeps_norms {
            kernels::remove_parallel(pool, &self.params, &mut self.grads)
        } else {
            self.ws.grad_norm()
        };
        let report = StepReport { losses, grad_norm };
        if !report.is_finite() {
            return Ok(report);
        }
        self.firing.count(self.ws.fired(), n_rows);
        let adam = self.adam();
        let Self { params, grads, m, v, .. } = self;
        kernels::adam(pool, params, grads, m, v, &adam, report.grad_norm);
        if keeps_norms {
            kernels::set_unit_rows(pool, params);
        }
        self.steps += 1;
        self.resample_if_due();
        Ok(report)
    }

    /// Adam's settings in this step.
    fn adam(&self) -> AdamStep {
        AdamStep {
            lr: learning_rate(&self.train, self.steps),
            beta1: self.train.adam_beta1,
            beta2: self.train.adam_beta2,
            eps: ADAM_EPS,
            t: self.steps + 1,
            max_grad_norm: MAX_GRAD_NORM,
        }
    }

    /// The step on the scaled batch, in a run on a device.
    fn step_on_device(&mut self, is_aimed: bool) -> Result<StepReport, TrainError> {
        let adam = self.adam();
        let Self { tensors: Some(tensors), scaled, target, weight, .. } = self else {
            unreachable!("invariant: the run is on a device")
        };
        let Architecture::Standard { l1_coefficient: last, lp_norm, l1_warm_up_steps } =
            self.sae.architecture
        else {
            unreachable!("invariant: only standard SAEs are moved to a device")
        };
        let l1_coefficient = sparsity_coefficient(last, l1_warm_up_steps, self.steps);
        let apply_b_dec_to_input = self.sae.apply_b_dec_to_input;
        let step = StandardStep { l1_coefficient, lp_norm, apply_b_dec_to_input };
        let aim = is_aimed.then_some(Aim { target, weight });
        let TensorStep { losses, grad_norm, fired } = tensors.standard_step(&step, &adam, scaled, aim)?;
        self.losses = losses;
        let report = StepReport { losses, grad_norm };
        if report.is_finite() {
            self.firing.count(&fired, self.train.batch_size);
            self.steps += 1;
        }
        Ok(report)
    }

    /// What the last step's reconstruction was compared with (B, D), and the weight of each row's error, where they
    /// have weights.
    pub(super) fn last_aim(&self) -> (&[f32], &[f32]) {
        if self.normalizer.is_per_row() { (&self.target, &self.weight) } else { (&self.scaled, &[]) }
    }

    /// Gradients of the last step, before they were clipped. Empty in a run on a device.
    pub fn last_gradients(&self) -> &Params {
        &self.grads
    }

    /// The line of `metrics.jsonl` for the step just done on batch `x`.
    ///
    /// # Errors
    /// The device fails, in a run on one.
    pub fn log_line(&self, x: &[f32]) -> Result<LogLine, TrainError> {
        let mut x_hat: Cow<'_, [f32]> = match &self.tensors {
            Some(tensors) => tensors.reconstruction()?.into(),
            None => self.ws.reconstruction().into(),
        };
        let x = self.filter.as_ref().map_or(x, NormFilter::kept);
        let explained = if self.normalizer.is_per_row() {
            // These modes are undone on the reconstruction: compare with the rows as they came.
            self.normalizer.undo(&self.scales, self.d_in, x_hat.to_mut());
            ExplainedVariance::of(x, &x_hat, self.d_in)
        } else {
            ExplainedVariance::of(&self.scaled, &x_hat, self.d_in)
        };
        let (own_losses, own_details) = self.own_values();
        Ok(LogLine {
            step: self.steps,
            overall_loss: self.losses.overall,
            mse_loss: self.losses.mse,
            own_losses,
            explained,
            l0: self.losses.l0,
            mean_passes_since_fired: self.firing.mean_steps_since_fired(),
            dead_features: self.firing.n_dead(self.train.dead_feature_window),
            learning_rate: learning_rate(&self.train, self.steps),
            n_training_samples: self.steps * self.train.batch_size as u64,
            own_details,
        })
    }

    /// Ends the run: folds what can be folded, so that the SAE takes activations as the model makes them.
    ///
    /// # Errors
    /// The device fails, in a run on one.
    pub fn finish(mut self, pool: &Pool) -> Result<Trained, TrainError> {
        self.download()?;
        let mut topk_threshold = self.threshold_now();
        let mut cfg = self.sae;
        let mut params = self.params;
        if let Normalizer::Whiten { whitening, .. } = &self.normalizer {
            if let Some(rescale @ true) = cfg.architecture.rescale_acts_by_decoder_norm() {
                // Undoing the whitening changes the decoder's norms, and with them the choice of the k
                // largest; with the norms already in the encoder it does not depend on them.
                sae::fold_decoder_norms(&mut params, self.d_in);
                *rescale = false;
            }
            sae::fold_whitening(pool, &mut params, whitening, cfg.apply_b_dec_to_input);
        }
        if let Normalizer::Scale(factor) = self.normalizer {
            sae::fold_scale(&mut params, factor);
            if matches!(cfg.architecture.rescale_acts_by_decoder_norm(), Some(true)) {
                // It is in units of decoder norms, which were just divided by the factor.
                topk_threshold /= factor;
            }
        }
        if !self.normalizer.is_per_row() {
            cfg.normalize_activations = NormalizeActivations::None;
        }
        if matches!(cfg.architecture.rescale_acts_by_decoder_norm(), Some(true)) {
            // As SAELens exports it: the setting stays, and has nothing left to do.
            sae::fold_decoder_norms(&mut params, self.d_in);
        }
        if let Architecture::BatchTopK { .. } | Architecture::MatryoshkaBatchTopK { .. } = cfg.architecture {
            params.threshold = vec![topk_threshold as f32; cfg.d_sae];
            cfg.architecture = Architecture::jumprelu_trained_otherwise();
        }
        Ok(Trained {
            sparsity: self.firing.log10_frequency(),
            losses: self.losses,
            l0: self.firing.l0(),
            n_dead: self.firing.n_dead(self.train.dead_feature_window),
            sae: Sae { cfg, d_in: self.d_in, params },
        })
    }
}
