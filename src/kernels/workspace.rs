//! Memory that a training step needs and keeps between steps.

use super::isa::Isa;
use super::params::Shape;
use super::pool::Pool;

/// Losses of one step, summed in double precision.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepLosses {
    /// What the gradients are of: `mse + sparsity`.
    pub overall: f64,
    /// Mean over tokens of the squared L2 error.
    pub mse: f64,
    /// The L1 loss with its coefficient (standard) or the auxiliary loss with its coefficient (TopK).
    pub sparsity: f64,
    /// Mean number of active latents per token.
    pub l0: f64,
}

/// Buffers of a training step, and what the last step leaves for its caller.
pub struct Workspace {
    pub(super) shape: Shape,
    pub(super) isa: Isa,
    pub(super) fired: Vec<u32>,
    pub(super) reconstruction: Vec<f32>,
    pub(super) n_tokens: usize,
}

impl Workspace {
    /// Allocates for steps of up to `shape.batch` tokens with the best instructions of this machine.
    pub fn new(shape: Shape, pool: &Pool) -> Self {
        Self::with_isa(shape, pool, Isa::detect())
    }

    /// The same with a chosen level of instructions.
    ///
    /// # Panics
    /// When this machine cannot run that level.
    pub fn with_isa(shape: Shape, _pool: &Pool, isa: Isa) -> Self {
        assert!(isa <= Isa::detect(), "this machine has no {}", isa.name());
        Self {
            shape,
            isa,
            fired: vec![0; shape.d_sae],
            reconstruction: vec![0.0; shape.batch * shape.d_in],
            n_tokens: 0,
        }
    }

    /// The sizes this workspace was made for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// For each latent, on how many tokens of the last batch it fired.
    pub fn fired(&self) -> &[u32] {
        &self.fired
    }

    /// The reconstruction of the last batch, (B, D).
    pub fn reconstruction(&self) -> &[f32] {
        &self.reconstruction[..self.n_tokens * self.shape.d_in]
    }
}

impl Workspace {
    pub(super) fn record(&mut self, outcome: &super::reference::StepOutcome) {
        let (d_in, d_sae) = (self.shape.d_in, self.shape.d_sae);
        self.n_tokens = outcome.reconstruction.len() / d_in;
        for (to, from) in self.reconstruction.iter_mut().zip(&outcome.reconstruction) {
            *to = *from as f32;
        }
        self.fired.fill(0);
        for row in outcome.acts.chunks_exact(d_sae) {
            for (count, &act) in self.fired.iter_mut().zip(row) {
                *count += u32::from(act != 0.0);
            }
        }
    }
}
