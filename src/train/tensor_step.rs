//! The standard training step on candle tensors, for the devices that candle drives (CUDA, Metal).
//!
//! The formulas of `kernels::reference`, with explicit gradients: no autograd graph is kept, and parameters,
//! moments and gradients stay on the device. One transfer a step brings the losses, the gradients' norm and the
//! firing counts to the host, as row sums that are added up there in double precision. Dense throughout. The
//! tests run on candle's CPU device.

use super::{device, run::TrainError};
use crate::kernels::{AdamStep, Params, StandardStep, StepLosses};
use candle_core::{Device, Result, Tensor};

/// One tensor per parameter of an SAE; the weights are (F, D).
#[derive(Debug, Clone)]
struct TensorParams {
    w_enc: Tensor,
    w_dec: Tensor,
    b_enc: Tensor,
    b_dec: Tensor,
}

impl TensorParams {
    fn upload(params: &Params, device: &Device) -> Result<Self> {
        let (f, d) = (params.d_sae(), params.d_in());
        Ok(Self {
            w_enc: Tensor::from_slice(&params.w_enc, (f, d), device)?,
            w_dec: Tensor::from_slice(&params.w_dec, (f, d), device)?,
            b_enc: Tensor::from_slice(&params.b_enc, f, device)?,
            b_dec: Tensor::from_slice(&params.b_dec, d, device)?,
        })
    }

    fn download(&self, params: &mut Params) -> Result<()> {
        params.w_enc = self.w_enc.flatten_all()?.to_vec1()?;
        params.w_dec = self.w_dec.flatten_all()?.to_vec1()?;
        params.b_enc = self.b_enc.to_vec1()?;
        params.b_dec = self.b_dec.to_vec1()?;
        Ok(())
    }

    fn each(&self) -> [&Tensor; 4] {
        [&self.w_enc, &self.w_dec, &self.b_enc, &self.b_dec]
    }

    fn each_mut(&mut self) -> [&mut Tensor; 4] {
        [&mut self.w_enc, &mut self.w_dec, &mut self.b_enc, &mut self.b_dec]
    }
}

/// What the reconstruction of each token is compared with, and how often its error counts, where that is not
/// the input itself and 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aim<'a> {
    /// (B, D).
    pub(super) target: &'a [f32],
    /// (B).
    pub(super) weight: &'a [f32],
}

/// What a step came to, on the host.
#[derive(Debug)]
pub(super) struct TensorStep {
    /// Losses of the batch, before the update.
    pub(super) losses: StepLosses,
    /// L2 norm of all gradients together, before they are clipped.
    pub(super) grad_norm: f64,
    /// (F) tokens of the batch on which each latent fired.
    pub(super) fired: Vec<u32>,
}

/// A batch's gradients and what its losses are made of, on the device.
struct Gradients {
    grads: TensorParams,
    /// (B) weighted squared error of each token.
    errors: Tensor,
    /// (B) p-norm of each token's activations in units of decoder norms.
    norms: Tensor,
    /// (F) tokens on which each latent is active.
    fired: Tensor,
    /// (B, D).
    reconstruction: Tensor,
}

/// A standard SAE in training on a device.
#[derive(Debug)]
pub(super) struct TensorTrainer {
    device: Device,
    params: TensorParams,
    m: TensorParams,
    v: TensorParams,
    /// Of the last step, (B, D).
    reconstruction: Option<Tensor>,
}

impl TensorTrainer {
    /// Uploads parameters and Adam's moments.
    pub(super) fn new(
        [params, m, v]: [&Params; 3],
        device: &Device,
    ) -> std::result::Result<Self, TrainError> {
        let upload = |params| TensorParams::upload(params, device).map_err(device::failed(device));
        Ok(Self {
            device: device.clone(),
            params: upload(params)?,
            m: upload(m)?,
            v: upload(v)?,
            reconstruction: None,
        })
    }

    /// Overwrites parameters and Adam's moments on the host with those of the device.
    pub(super) fn download(&self, [params, m, v]: [&mut Params; 3]) -> std::result::Result<(), TrainError> {
        for (tensors, host) in [(&self.params, params), (&self.m, m), (&self.v, v)] {
            tensors.download(host).map_err(device::failed(&self.device))?;
        }
        Ok(())
    }

    /// The reconstruction (B, D) of the last step's batch; empty before the first step.
    pub(super) fn reconstruction(&self) -> std::result::Result<Vec<f32>, TrainError> {
        let Some(reconstruction) = &self.reconstruction else { return Ok(Vec::new()) };
        reconstruction.flatten_all().and_then(|flat| flat.to_vec1()).map_err(device::failed(&self.device))
    }

    /// One step on `x` (B, D): gradients of the standard loss, global clip, Adam. When loss or gradient are not
    /// finite, the parameters stay as they were.
    pub(super) fn standard_step(
        &mut self,
        step: &StandardStep,
        adam: &AdamStep,
        x: &[f32],
        aim: Option<Aim<'_>>,
    ) -> std::result::Result<TensorStep, TrainError> {
        self.try_step(step, adam, x, aim).map_err(device::failed(&self.device))
    }

    fn try_step(
        &mut self,
        step: &StandardStep,
        adam: &AdamStep,
        x: &[f32],
        aim: Option<Aim<'_>>,
    ) -> Result<TensorStep> {
        let (f, d) = self.params.w_enc.dims2()?;
        let b = x.len() / d;
        let Gradients { grads, errors, norms, fired, reconstruction } = self.gradients(step, x, aim)?;
        let row_squares = |grad: &Tensor| grad.sqr()?.sum(1);
        let sums = [
            errors,
            norms,
            fired,
            row_squares(&grads.w_enc)?,
            row_squares(&grads.w_dec)?,
            grads.b_enc.sqr()?,
            grads.b_dec.sqr()?,
        ];
        let sums = Tensor::cat(&sums, 0)?.to_vec1::<f32>()?;
        let (errors, rest) = sums.split_at(b);
        let (norms, rest) = rest.split_at(b);
        let (fired, squares) = rest.split_at(f);
        let total = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();

        let scale = 1.0 / b as f64;
        let (mse, sparsity) = (scale * total(errors), step.l1_coefficient * scale * total(norms));
        let losses =
            StepLosses { overall: mse + sparsity, mse, sparsity, auxiliary: 0.0, l0: scale * total(fired) };
        let grad_norm = total(squares).sqrt();
        if losses.overall.is_finite() && grad_norm.is_finite() {
            self.adam(adam, &grads, grad_norm)?;
        }
        self.reconstruction = Some(reconstruction);
        // Counts of at most B tokens are exact in f32.
        Ok(TensorStep { losses, grad_norm, fired: fired.iter().map(|&count| count as u32).collect() })
    }

    fn gradients(&self, step: &StandardStep, x: &[f32], aim: Option<Aim<'_>>) -> Result<Gradients> {
        let TensorParams { w_enc, w_dec, b_enc, b_dec } = &self.params;
        let d = b_dec.dim(0)?;
        let b = x.len() / d;
        let upload = |values: &[f32], width| Tensor::from_slice(values, (b, width), &self.device);
        let x = upload(x, d)?;
        let scale = 1.0 / b as f64;
        let lambda = step.l1_coefficient * scale;

        let x_in = if step.apply_b_dec_to_input { x.broadcast_sub(b_dec)? } else { x.clone() };
        let pre = x_in.matmul(&w_enc.t()?)?.broadcast_add(b_enc)?;
        let active = above_zero(&pre)?;
        // A product, not a maximum, so that NaN gets through to the loss.
        let acts = (pre * &active)?;
        let reconstruction = acts.matmul(w_dec)?.broadcast_add(b_dec)?;

        let (errors, g) = match aim {
            None => {
                let error = (&reconstruction - &x)?;
                (error.sqr()?.sum(1)?, (error * (2.0 * scale))?)
            }
            Some(Aim { target, weight }) => {
                let error = (&reconstruction - upload(target, d)?)?;
                let weighted = error.broadcast_mul(&upload(weight, 1)?)?;
                ((&weighted * &error)?.sum(1)?, (weighted * (2.0 * scale))?)
            }
        };

        let w_norms = w_dec.sqr()?.sum(1)?.sqrt()?;
        let Penalty { norms, d_acts, d_w_norms } = penalty(&acts, &w_norms, lambda, step.lp_norm)?;
        let d_pre = (g.matmul(&w_dec.t()?)?.broadcast_add(&d_acts)? * &active)?;
        // A norm's gradient is its row divided by it, and 0 for a row of zeros.
        let d_w_norms = (d_w_norms / not_zero(&w_norms)?)?.unsqueeze(1)?;
        let d_b_enc = d_pre.sum(0)?;
        let mut d_b_dec = g.sum(0)?;
        if step.apply_b_dec_to_input {
            d_b_dec = (d_b_dec - d_b_enc.unsqueeze(0)?.matmul(w_enc)?.squeeze(0)?)?;
        }
        let grads = TensorParams {
            w_enc: d_pre.t()?.matmul(&x_in)?,
            w_dec: (acts.t()?.matmul(&g)? + w_dec.broadcast_mul(&d_w_norms)?)?,
            b_enc: d_b_enc,
            b_dec: d_b_dec,
        };
        Ok(Gradients { grads, errors, norms, fired: active.sum(0)?, reconstruction })
    }

    /// Clips and updates, as `torch.nn.utils.clip_grad_norm_` and `torch.optim.Adam` do.
    fn adam(&mut self, adam: &AdamStep, grads: &TensorParams, grad_norm: f64) -> Result<()> {
        let clip = adam.clip_factor(grad_norm);
        let bias1 = 1.0 - adam.beta1.powf(adam.t as f64);
        let bias2 = (1.0 - adam.beta2.powf(adam.t as f64)).sqrt();
        let state = self.params.each_mut().into_iter().zip(self.m.each_mut()).zip(self.v.each_mut());
        for (((param, m), v), grad) in state.zip(grads.each()) {
            let grad = (grad * clip)?;
            *m = ((&*m * adam.beta1)? + (&grad * (1.0 - adam.beta1))?)?;
            *v = ((&*v * adam.beta2)? + (grad.sqr()? * (1.0 - adam.beta2))?)?;
            let denominator = ((v.sqrt()? / bias2)? + adam.eps)?;
            *param = (&*param - ((&*m / denominator)? * (adam.lr / bias1))?)?;
        }
        Ok(())
    }
}

/// The sparsity loss `lambda sum_b |f_b n|_p`, of activations f (B, F) and decoder norms n (F).
struct Penalty {
    /// (B) the p-norms, without lambda.
    norms: Tensor,
    /// (B, F) or (1, F): derivative by the activations, where they are active.
    d_acts: Tensor,
    /// (F) derivative by the decoder norms.
    d_w_norms: Tensor,
}

fn penalty(acts: &Tensor, w_norms: &Tensor, lambda: f64, p: f64) -> Result<Penalty> {
    if p == 1.0 {
        return Ok(Penalty {
            norms: acts.matmul(&w_norms.unsqueeze(1)?)?.squeeze(1)?,
            d_acts: (w_norms.unsqueeze(0)? * lambda)?,
            d_w_norms: (acts.sum(0)? * lambda)?,
        });
    }
    // With y = f n: d|y|_p / dy_i = (y_i / |y|_p)^(p - 1), and 0 where y_i = 0.
    let y = acts.broadcast_mul(w_norms)?;
    let norms = y.powf(p)?.sum_keepdim(1)?.powf(1.0 / p)?;
    let share = y.broadcast_div(&not_zero(&norms)?)?;
    let slope = ((not_zero(&share)?.powf(p - 1.0)? * above_zero(&share)?)? * lambda)?;
    Ok(Penalty {
        norms: norms.squeeze(1)?,
        d_acts: slope.broadcast_mul(w_norms)?,
        d_w_norms: (slope * acts)?.sum(0)?,
    })
}

/// 1 where a value is above 0, else 0.
fn above_zero(values: &Tensor) -> Result<Tensor> {
    values.gt(0_f32)?.to_dtype(values.dtype())
}

/// The values, with 1 in place of every 0.
fn not_zero(values: &Tensor) -> Result<Tensor> {
    values + values.eq(0_f32)?.to_dtype(values.dtype())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{
        Isa, Pool, adam, reference, standard_step,
        testing::{Problem, SHAPES, SHIFTS},
    };

    /// Largest deviation of a loss, relative to it, and of a gradient, relative to the largest of its array.
    const TOLERANCE: f64 = 5e-6;

    fn step(lp_norm: f64, apply_b_dec_to_input: bool) -> StandardStep {
        StandardStep { l1_coefficient: 0.3, lp_norm, apply_b_dec_to_input }
    }

    fn trainer(params: &Params) -> TensorTrainer {
        let zeros = Params::zeros(params.d_in(), params.d_sae());
        TensorTrainer::new([params, &zeros, &zeros], &Device::Cpu).unwrap()
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&value| f64::from(value)).collect()
    }

    /// Largest deviation in an array, relative to its largest value.
    fn deviation(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        let off = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
        // Not f64::max, which would drop NaN.
        off.fold(0.0, |worst, off| if off <= worst { worst } else { off }) / largest
    }

    fn relative(found: f64, expected: f64) -> f64 {
        if found == expected { 0.0 } else { (found - expected).abs() / expected.abs() }
    }

    /// Gradients, losses and counts of one step against the reference.
    fn check(problem: &Problem, step: &StandardStep, aim: Option<Aim<'_>>) {
        let what = format!("{:?} {step:?}, aimed {}", problem.shape, aim.is_some());
        let wide_aim = aim.map(|aim| (wide(aim.target), wide(aim.weight)));
        let wide_aim = wide_aim.as_ref().map(|(target, weight)| reference::Aim {
            target,
            weight,
            width: problem.shape.d_in,
        });
        let expected =
            reference::aimed_standard_step(&problem.params.to_f64(), step, &problem.x64(), wide_aim);

        let mut trainer = trainer(&problem.params);
        let found = trainer.gradients(step, &problem.x, aim).unwrap();
        let mut grads = problem.dirty_grads();
        found.grads.download(&mut grads).unwrap();
        for (nth, (found, expected)) in grads.arrays().into_iter().zip(expected.grads.arrays()).enumerate() {
            let off = deviation(found, expected);
            assert!(off <= TOLERANCE, "{what}: gradient {nth} is off by {off:.1e}");
        }

        let adam = AdamStep { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1, max_grad_norm: 1.0 };
        let found = trainer.standard_step(step, &adam, &problem.x, aim).unwrap();
        let squares: f64 = expected.grads.arrays().iter().flat_map(|a| a.iter()).map(|g| g * g).sum();
        for (name, found, expected) in [
            ("overall", found.losses.overall, expected.losses.overall),
            ("mse", found.losses.mse, expected.losses.mse),
            ("sparsity", found.losses.sparsity, expected.losses.sparsity),
            ("l0", found.losses.l0, expected.losses.l0),
            ("norm", found.grad_norm, squares.sqrt()),
        ] {
            let off = relative(found, expected);
            assert!(off <= TOLERANCE, "{what}: {name} is {found}, the reference says {expected}");
        }
        let off = deviation(&trainer.reconstruction().unwrap(), &expected.reconstruction);
        assert!(off <= TOLERANCE, "{what}: reconstruction is off by {off:.1e}");
        let d_sae = problem.shape.d_sae;
        for (f, &fired) in found.fired.iter().enumerate() {
            let count = expected.acts.iter().skip(f).step_by(d_sae).filter(|&&act| act != 0.0).count();
            assert_eq!(fired as usize, count, "{what}: fired[{f}]");
        }
    }

    #[test]
    fn equals_the_reference_on_awkward_shapes_at_all_densities() {
        for (seed, (d_in, d_sae, batch)) in SHAPES.into_iter().enumerate() {
            for shift in SHIFTS {
                let problem = Problem::new(d_in, d_sae, batch, shift, seed as u64);
                for apply_b_dec_to_input in [false, true] {
                    check(&problem, &step(1.0, apply_b_dec_to_input), None);
                    check(&problem, &step(2.0, apply_b_dec_to_input), None);
                }
            }
        }
    }

    #[test]
    fn equals_the_reference_for_other_norms_and_aims_and_rows_of_zeros() {
        for shift in SHIFTS {
            let mut problem = Problem::new(19, 101, 35, shift, 5);
            problem.params.w_dec[19..3 * 19].fill(0.0);
            let target: Vec<f32> = problem.x.iter().map(|x| 1.2 * x + 0.1).collect();
            let weight: Vec<f32> = (0..35).map(|b| b as f32 / 9.0).collect();
            for lp_norm in [0.5, 1.0, 1.3, 2.0] {
                check(&problem, &step(lp_norm, true), None);
                check(&problem, &step(lp_norm, false), Some(Aim { target: &target, weight: &weight }));
            }
            check(&problem, &StandardStep { l1_coefficient: 0.0, ..step(0.5, true) }, None);
        }
    }

    /// Allowed over 12 steps: in a loss, relative; in a weight or moment, absolute, against the kernels.
    const PATH_TOLERANCE: f64 = 1e-5;

    /// The same in a weight or moment against the reference. Measured: 2.2e-5 in one weight of 12352, and all
    /// others below 5e-6. The kernels are off by the same 2.2e-5 there: it is single against double precision.
    const PRECISION_TOLERANCE: f64 = 3e-5;

    #[test]
    fn several_steps_follow_the_kernels_and_the_reference() {
        for (d_in, d_sae, batch) in [(17, 97, 33), (64, 193, 65)] {
            for (lp_norm, apply_b_dec_to_input) in [(1.0, false), (1.0, true), (2.0, false), (2.0, true)] {
                follow(&Problem::new(d_in, d_sae, batch, -1.0, 3), &step(lp_norm, apply_b_dec_to_input));
            }
        }
    }

    fn follow(problem: &Problem, step: &StandardStep) {
        let what = format!("{:?} {step:?}", problem.shape);
        let (pool, mut grads) = (Pool::new(1), problem.dirty_grads());
        let mut ws = problem.workspace(&pool, Isa::detect());
        let zeros = Params::zeros(problem.shape.d_in, problem.shape.d_sae);
        let [mut params, mut m, mut v] = [problem.params.clone(), zeros.clone(), zeros.clone()];
        let [mut params64, mut m64, mut v64] = [params.to_f64(), zeros.to_f64(), zeros.to_f64()];
        let mut trainer = trainer(&problem.params);
        for t in 1..=12 {
            let settings = AdamStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, t, max_grad_norm: 1.0 };
            let found = trainer.standard_step(step, &settings, &problem.x, None).unwrap().losses.overall;

            let kernels = standard_step(&pool, &mut ws, &params, step, &problem.x, &mut grads);
            adam(&pool, &mut params, &grads, &mut m, &mut v, &settings, ws.grad_norm());
            let wide = reference::standard_step(&params64, step, &problem.x64());
            reference::clip_and_adam(&mut params64, &wide.grads, &mut m64, &mut v64, &settings);
            for (whose, expected) in [("kernels", kernels.overall), ("reference", wide.losses.overall)] {
                let off = relative(found, expected);
                assert!(off <= PATH_TOLERANCE, "{what}, step {t}: {found}, the {whose} have {expected}");
            }
        }
        let [mut found, mut found_m, mut found_v] = [zeros.clone(), zeros.clone(), zeros];
        trainer.download([&mut found, &mut found_m, &mut found_v]).unwrap();
        for (found, kernels, expected) in
            [(&found, &params, &params64), (&found_m, &m, &m64), (&found_v, &v, &v64)]
        {
            let off = worst(found, &kernels.to_f64());
            assert!(off <= PATH_TOLERANCE, "{what}: {off:.1e} from the kernels");
            let off = worst(found, expected);
            assert!(off <= PRECISION_TOLERANCE, "{what}: {off:.1e} from the reference");
        }
    }

    /// Largest absolute deviation.
    fn worst(found: &Params, expected: &Params<f64>) -> f64 {
        let pairs = found.arrays().into_iter().flatten().zip(expected.arrays().into_iter().flatten());
        let off = pairs.map(|(a, b)| (f64::from(*a) - b).abs());
        off.fold(0.0, |worst, off| if off <= worst { worst } else { off })
    }

    #[test]
    fn what_is_not_finite_shows_and_changes_no_weight() {
        let settings = AdamStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1, max_grad_norm: 1.0 };
        for (value, lp_norm) in [(f32::NAN, 1.0), (f32::NAN, 2.0), (f32::INFINITY, 1.0), (f32::MAX, 1.0)] {
            let mut problem = Problem::new(17, 97, 33, -1.0, 1);
            problem.x[40] = value;
            let mut trainer = trainer(&problem.params);
            let found = trainer.standard_step(&step(lp_norm, true), &settings, &problem.x, None).unwrap();
            assert!(!found.losses.overall.is_finite() || !found.grad_norm.is_finite(), "{value}");
            let mut after = Params::default();
            trainer.params.download(&mut after).unwrap();
            assert!(after == problem.params, "{value}");
        }
    }
}
