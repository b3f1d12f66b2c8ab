//! The training step and what it carries from one to the next.
//!
//! [`Trainer`] takes batches from whoever calls it: the loop gives it rows of the store, the golden test the
//! batches of another implementation. Both go through the same code.

use super::{
    filter::NormFilter,
    firing::Firing,
    metrics::{ExplainedVariance, LogLine},
    on_device::Staging,
    output::Output,
    run::TrainError,
    schedules::learning_rate,
    tensor::TensorTrainer,
};
use crate::{
    kernels::{self, AdamStep, Params, Pool, PursuitSummary, Shape, StepLosses, Workspace},
    sae::{self, Normalizer, RowScales, Sae},
    trial::{Architecture, NormalizeActivations, SaeConfig, TrainConfig},
};
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
    /// Width of weights.
    pub(super) width: usize,
    pub(super) normalizer: Normalizer,
    /// In a transcoder's run, which `normalizer` has no part in.
    pub(super) output: Option<Output>,
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
    pub(super) scales: RowScales,
    pub(super) target: Vec<f32>,
    pub(super) weight: Vec<f32>,
    /// Takes the place of `ws` and `grads` in a run on a device.
    pub(super) tensors: Option<TensorTrainer>,
    /// What there has been made ready for the step to come.
    pub(super) staging: Staging,
    /// Losses of a Matryoshka's levels but the last, in a run on a device.
    pub(super) levels: Vec<f64>,
    /// What the last step's matching pursuit came to, in a run on a device.
    pub(super) pursuit: Option<PursuitSummary>,
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

/// Where a step has come to.
pub(super) enum Begun {
    /// It is done.
    Ended(StepReport),
    /// It goes on by itself, and is to be ended.
    Launched,
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
    /// A run that starts from `params` of width `d_in`, whose activations are scaled by `normalizer`.
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
            width: d_in,
            normalizer,
            output: None,
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
            staging: Staging::default(),
            levels: Vec::new(),
            pursuit: None,
        }
    }

    /// Makes it a transcoder's run: its batches are rows of inputs and outputs, and its weights as wide as the wider
    /// of the two.
    ///
    /// # Panics
    /// When the weights have another width.
    #[must_use]
    pub fn with_output(mut self, output: Output) -> Self {
        assert_eq!(self.width, output.width(), "weights are as wide as the wider of input and output");
        self.normalizer = Normalizer::Identity;
        self.target = vec![0.0; self.scaled.len()];
        self.weight = vec![1.0; self.train.batch_size];
        self.ws.set_aux_width(output.d_out);
        self.output = Some(output);
        self
    }

    /// One step on the batch `x` (B, D) of activations as the model made them, for a transcoder rows of an input and an
    /// output. When the report is not
    /// finite the run is over, and the weights stay those from before the step.
    ///
    /// # Errors
    /// The device fails, in a run on one.
    pub fn step(&mut self, pool: &Pool, x: &[f32]) -> Result<StepReport, TrainError> {
        match self.begin_step(pool, x)? {
            Begun::Ended(report) => Ok(report),
            Begun::Launched => self.end_step(),
        }
    }

    /// Does a step or, in a run on a device, launches it there, for [`Trainer::end_step`] to end.
    pub(super) fn begin_step(&mut self, pool: &Pool, x: &[f32]) -> Result<Begun, TrainError> {
        let row_width = self.output.map_or(self.width, |output| output.row_width());
        assert_eq!(x.len(), self.train.batch_size * row_width, "a batch has train.batch_size rows");
        self.firing.begin_step(self.steps, self.train.feature_sampling_window);
        if self.takes_staged() {
            self.launch()?;
            return Ok(Begun::Launched);
        }
        let Some(is_aimed) = self.load(pool, x) else {
            // All were left out: nothing to learn, and nothing that did not fire.
            self.steps += 1;
            return Ok(Begun::Ended(StepReport { losses: self.losses, grad_norm: 0.0 }));
        };
        if self.tensors.is_some() {
            self.upload_loaded(is_aimed)?;
            self.launch()?;
            return Ok(Begun::Launched);
        }
        self.step_on_host(pool, is_aimed).map(Begun::Ended)
    }

    /// The step on the scaled batch, by the kernels.
    fn step_on_host(&mut self, pool: &Pool, is_aimed: bool) -> Result<StepReport, TrainError> {
        let n_rows = self.scaled.len() / self.width;
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
        self.resample_if_due()?;
        Ok(report)
    }

    /// Scales the rows that stay of `x`, and says whether they have targets of their own; nothing when none stays.
    pub(super) fn load(&mut self, pool: &Pool, x: &[f32]) -> Option<bool> {
        if let Some(output) = &self.output {
            output.split(x, &mut self.scaled, &mut self.target);
            return Some(true);
        }
        let Self { normalizer, filter, scaled, scales, target, weight, width, .. } = self;
        let x = filter.as_mut().map_or(x, |filter| filter.keep(x, *width));
        scaled.resize(x.len(), 0.0);
        if x.is_empty() {
            return None;
        }
        if normalizer.is_per_row() {
            target.resize(x.len(), 0.0);
        }
        normalizer.apply(pool, x, *width, scaled, scales);
        Some(normalizer.targets(scaled, scales, *width, target, weight))
    }

    /// Adam's settings in this step.
    pub(super) fn adam(&self) -> AdamStep {
        AdamStep {
            lr: learning_rate(&self.train, self.steps),
            beta1: self.train.adam_beta1,
            beta2: self.train.adam_beta2,
            eps: ADAM_EPS,
            t: self.steps + 1,
            max_grad_norm: MAX_GRAD_NORM,
        }
    }

    /// What the last step's reconstruction was compared with (B, D), and the weight of each row's error, where they
    /// have weights.
    pub(super) fn last_aim(&self) -> (&[f32], &[f32]) {
        if self.normalizer.is_per_row() { (&self.target, &self.weight) } else { (&self.scaled, &[]) }
    }

    /// The reconstruction (B, D) of the last step's batch.
    pub(super) fn last_reconstruction(&self) -> Result<Cow<'_, [f32]>, TrainError> {
        match &self.tensors {
            Some(tensors) => tensors.reconstruction().map(Cow::Owned),
            None => Ok(self.ws.reconstruction().into()),
        }
    }

    /// Mean squared errors of a Matryoshka's levels but the last, of the last step.
    pub(super) fn level_losses(&self) -> &[f64] {
        if self.tensors.is_some() { &self.levels } else { self.ws.level_losses() }
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
        let mut x_hat = self.last_reconstruction()?;
        let x = self.filter.as_ref().map_or(x, NormFilter::kept);
        let explained = if self.normalizer.is_per_row() {
            // These modes are undone on the reconstruction: compare with the rows as they came.
            self.normalizer.undo(&self.scales, self.width, x_hat.to_mut());
            ExplainedVariance::of(x, &x_hat, self.width)
        } else {
            let target = if self.output.is_some() { &self.target } else { &self.scaled };
            ExplainedVariance::of(target, &x_hat, self.width)
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
                sae::fold_decoder_norms(&mut params, self.width);
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
            if let Architecture::MatchingPursuit { residual_threshold, .. } = &mut cfg.architecture {
                // It is compared with activations, which come unscaled from now on.
                *residual_threshold /= factor;
            }
        }
        if let Some(Output { scale_in, scale_out, .. }) = self.output {
            sae::fold_scales(&mut params, scale_in, scale_out);
        }
        if !self.normalizer.is_per_row() {
            cfg.normalize_activations = NormalizeActivations::None;
        }
        if matches!(cfg.architecture.rescale_acts_by_decoder_norm(), Some(true)) {
            // As SAELens exports it: the setting stays, and has nothing left to do.
            sae::fold_decoder_norms(&mut params, self.width);
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
            sae: Sae {
                cfg,
                d_in: self.output.map_or(self.width, |output| output.d_in),
                d_out: self.output.map(|output| output.d_out),
                params,
            },
        })
    }
}
