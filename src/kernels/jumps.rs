//! The estimated gradients of a JumpReLU: what its entries add to the gradients of activations and
//! thresholds. [`super::reference::jumprelu_step`] says what is computed.

/// How the loss depends on the jumps of one step's latents.
#[derive(Clone, Copy)]
pub(super) struct Jumps<'a> {
    /// (F)
    pub(super) threshold: &'a [f32],
    pub(super) bandwidth: f32,
    pub(super) ste_to_input: bool,
    pub(super) sparsity: Sparsity<'a>,
    /// Weight of the pre-activation loss of one token, and which latents it is on.
    pub(super) pre_act: Option<(f32, &'a [bool])>,
}

/// The sparsity loss.
#[derive(Clone, Copy)]
pub(super) enum Sparsity<'a> {
    /// By how much it rises with every latent that becomes active.
    Step(f32),
    /// The same for each token, (B).
    StepOfToken(&'a [f32]),
    /// `weight tanh(scale f n)` for each latent of a token.
    Tanh { weight: f32, scale: f32 },
}

/// What the entries of one latent come to.
#[derive(Default)]
pub(super) struct Slopes {
    /// Gradient of the threshold.
    pub(super) threshold: f64,
    /// Gradient of the decoder row's norm.
    pub(super) norm: f64,
    /// `sum tanh(scale f n)`, in that mode.
    pub(super) sparsity: f64,
    /// `sum relu(theta - pre) n`, where that loss is wanted.
    pub(super) pre_act: f64,
}

impl Jumps<'_> {
    /// Whether entries that are not active pull on the encoder, and not on thresholds alone.
    pub(super) fn pulls_encoder(&self) -> bool {
        self.ste_to_input || self.pre_act.is_some()
    }

    /// For one latent with decoder norm `norm`: takes the gradients by its activations in `d_pre` and makes
    /// them those by its pre-activations `pre`.
    #[inline(always)]
    pub(super) fn latent(
        &self,
        latent: usize,
        norm: f32,
        tokens: &[u32],
        pre: &[f32],
        d_pre: &mut [f32],
    ) -> Slopes {
        let theta = self.threshold[latent];
        let pre_act = self.pre_act.and_then(|(weight, dead)| dead[latent].then_some(weight));
        let (jump_height, step_height) = (theta / self.bandwidth, 1.0 / self.bandwidth);
        let mut slopes = Slopes::default();
        for ((d, &pre), &token) in d_pre.iter_mut().zip(pre).zip(tokens) {
            let active = is_active(pre, theta);
            if let Sparsity::Tanh { weight, scale } = self.sparsity {
                let act = if active { pre } else { 0.0 };
                let tanh = (scale * act * norm).tanh();
                let slope = weight * scale * (1.0 - tanh * tanh);
                *d += slope * norm;
                slopes.norm += f64::from(slope * act);
                slopes.sparsity += f64::from(tanh);
            }
            let mut to_input = if active { *d } else { 0.0 };
            if is_near(pre, theta, self.bandwidth) {
                let d_step = match self.sparsity {
                    Sparsity::Step(slope) => slope,
                    Sparsity::StepOfToken(slopes) => slopes[token as usize],
                    Sparsity::Tanh { .. } => 0.0,
                };
                let jump = jump_height * *d + step_height * d_step;
                slopes.threshold -= f64::from(jump);
                if self.ste_to_input {
                    to_input += jump;
                }
            }
            if let Some(weight) = pre_act
                && pre < theta
            {
                let below = theta - pre;
                to_input -= weight * norm;
                slopes.threshold += f64::from(weight * norm);
                slopes.norm += f64::from(weight * below);
                slopes.pre_act += f64::from(below * norm);
            }
            *d = to_input;
        }
        slopes
    }
}

/// NaN is active, so that it shows in the loss.
#[inline(always)]
pub(super) fn is_active(pre: f32, theta: f32) -> bool {
    pre > theta || pre.is_nan()
}

/// Whether the estimator gives the jump a slope here.
#[inline(always)]
pub(super) fn is_near(pre: f32, theta: f32, bandwidth: f32) -> bool {
    let from_edge = (pre - theta) / bandwidth;
    -0.5 < from_edge && from_edge < 0.5
}
