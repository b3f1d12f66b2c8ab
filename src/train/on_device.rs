//! A run's steps on candle tensors: what the host does before, between and after them.
//!
//! While a step computes, the host reads, scales and uploads the next batch. What a step found is read back after
//! that, so the device has work queued while the host waits. Candle queues everything of a device on one stream: the
//! copy itself comes after the step's products, and what is won is the host's own work.

use super::{
    run::TrainError,
    steps::Step,
    tensor::{Aim, Settings, TensorStep, TensorTrainer},
    trainer::{StepReport, Trainer},
};
use crate::{
    kernels::{Params, Pool},
    sae::RowScales,
};
use candle_core::Device;
use std::mem;

/// The scaled rows of the next step beside those of this one, whose metrics are still to be logged.
#[derive(Default)]
pub(super) struct Staging {
    scaled: Vec<f32>,
    scales: RowScales,
    target: Vec<f32>,
    weight: Vec<f32>,
    is_ready: bool,
}

impl Trainer {
    /// Goes on with candle tensors on `device`. Weights and moments stay there from now on.
    ///
    /// # Errors
    /// The device has not the memory.
    pub fn move_to(&mut self, device: &Device) -> Result<(), TrainError> {
        let settings = Settings {
            autocast: self.train.options.autocast,
            unit_rows: self.train.options.normalize_sae_decoder,
            aux_width: self.output.map_or(self.width, |output| output.d_out),
        };
        self.tensors = Some(TensorTrainer::new([&self.params, &self.m, &self.v], settings, device)?);
        self.grads = Params::default();
        self.staging = Staging {
            scaled: self.scaled.clone(),
            target: self.target.clone(),
            weight: self.weight.clone(),
            ..Staging::default()
        };
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

    /// Whether the batch of the next step can be made ready while a step runs. A filter keeps rows of one batch only.
    pub(super) fn stages(&self) -> bool {
        self.tensors.is_some() && self.filter.is_none()
    }

    /// Scales and uploads the batch `x` of the next step, between begin and end of a step.
    pub(super) fn stage(&mut self, pool: &Pool, x: &[f32]) -> Result<(), TrainError> {
        self.swap_staging();
        let is_aimed = self.load(pool, x);
        let uploaded = is_aimed.map_or(Ok(()), |is_aimed| self.upload_loaded(is_aimed));
        self.staging.is_ready = is_aimed.is_some() && uploaded.is_ok();
        self.swap_staging();
        uploaded
    }

    /// Makes the batch that was made ready the current one, if there is one.
    pub(super) fn takes_staged(&mut self) -> bool {
        let is_ready = mem::take(&mut self.staging.is_ready);
        if is_ready {
            self.swap_staging();
        }
        is_ready
    }

    fn swap_staging(&mut self) {
        let Self { staging, scaled, scales, target, weight, .. } = self;
        mem::swap(&mut staging.scaled, scaled);
        mem::swap(&mut staging.scales, scales);
        mem::swap(&mut staging.target, target);
        mem::swap(&mut staging.weight, weight);
    }

    /// Uploads the loaded batch.
    pub(super) fn upload_loaded(&mut self, is_aimed: bool) -> Result<(), TrainError> {
        let Self { tensors, scaled, target, weight, .. } = self;
        let aim = is_aimed.then_some(Aim { target, weight });
        tensors.as_mut().map_or(Ok(()), |tensors| tensors.stage(scaled, aim))
    }

    /// Launches the step on the uploaded batch.
    pub(super) fn launch(&mut self) -> Result<(), TrainError> {
        let (adam, window) = (self.adam(), self.train.dead_feature_window);
        let Self { tensors, sae, train, firing, dead, steps, params, .. } = self;
        let step = Step::of(sae, train, params.d_in(), *steps);
        let dead = firing.dead(window, dead);
        tensors.as_mut().map_or(Ok(()), |tensors| tensors.launch(&step, &adam, dead))
    }

    /// Waits for the launched step and takes in what it came to.
    ///
    /// # Panics
    /// When none was launched.
    pub(super) fn end_step(&mut self) -> Result<StepReport, TrainError> {
        let tensors = self.tensors.as_mut().expect("invariant: a step was launched on a device");
        let TensorStep { losses, levels, grad_norm, fired, least, pursuit } = tensors.end()?;
        (self.losses, self.levels, self.pursuit) = (losses, levels, pursuit);
        self.follow_least_kept(least);
        let report = StepReport { losses, grad_norm };
        if report.is_finite() {
            self.firing.count(&fired, self.scaled.len() / self.width);
            self.steps += 1;
            self.resample_if_due()?;
        }
        Ok(report)
    }
}
