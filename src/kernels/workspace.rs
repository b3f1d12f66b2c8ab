//! Memory that a training step needs and keeps between steps. All of it grows to what the densest step so far
//! needed and is then used again: a step in the steady state allocates nothing.

use super::aim::NextAim;
use super::batch_topk::BatchSelection;
use super::decode::DecodeSpace;
use super::gather::GatherSpace;
use super::isa::Isa;
use super::lists::{Lists, Rows};
use super::matryoshka::Levels;
use super::memory::{Buffer, Spares};
use super::params::Shape;
use super::pool::Pool;
use super::product::PANEL;
use super::pursuit::PursuitSpace;
use super::screen::Screen;
use super::select::{AuxEntries, Selection};
use super::weights::WeightSpace;

/// Losses of one step, summed in double precision.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepLosses {
    /// What the gradients are of: `mse + sparsity + auxiliary`.
    pub overall: f64,
    /// Mean over tokens of the squared L2 error.
    pub mse: f64,
    /// The architecture's own loss with its coefficient: L1 (standard), L0 (JumpReLU), or the reconstruction
    /// by dead latents (TopK).
    pub sparsity: f64,
    /// A second one, where the architecture has it: on pre-activations of dead latents (JumpReLU), the
    /// reconstruction by gates (gated).
    pub auxiliary: f64,
    /// Mean number of active latents per token.
    pub l0: f64,
}

/// Buffers of a training step, and what the last step leaves for its caller.
pub struct Workspace {
    pub(super) shape: Shape,
    pub(super) isa: Isa,
    pub(super) n_tokens: usize,
    pub(super) fired: Vec<u32>,
    /// Reconstruction, (B, D).
    pub(super) reconstruction: Buffer,
    /// Gradient of the loss by the reconstruction, (B, D), or what a part of a batch needs of it.
    pub(super) g: Buffer,
    /// The batch or part less the decoder bias, (B, D), where the encoder wants that.
    pub(super) x_in: Buffer,
    /// What the encoder reads, in panels; once it has read it, room for another (B, D) array.
    pub(super) panels: Buffer,
    /// The same as bytes, where the encoder screens with them; then room for another.
    pub(super) screen: Screen,
    /// What a value must reach to be kept, per token.
    pub(super) limits: Buffer,
    /// The latents in the order in which tiles take them.
    pub(super) order: Vec<u32>,
    pub(super) lists: Lists,
    pub(super) rows: Rows,
    /// Entries for auxiliary losses, of which every architecture has one at most but Matryoshka one for each level.
    pub(super) aux: Vec<AuxEntries>,
    /// Losses per token of one of them.
    pub(super) aux_losses: Vec<[f64; 2]>,
    pub(super) selection: Selection,
    pub(super) batch_selection: BatchSelection,
    /// Limits of dead latents, which may be chosen by either selection.
    pub(super) dead_limits: Buffer,
    pub(super) norms: Buffer,
    /// What a value must reach to be kept, per latent, where latents have limits of their own.
    pub(super) latent_limits: Vec<f32>,
    /// Slope of a loss of each token, where it has one.
    pub(super) token_slopes: Vec<f32>,
    pub(super) levels: Levels,
    pub(super) pursuit: PursuitSpace,
    pub(super) rank_spares: Spares<Vec<u64>>,
    pub(super) gather_spares: Spares<GatherSpace>,
    pub(super) decode_space: DecodeSpace,
    pub(super) weight_space: WeightSpace,
    /// Losses per token: squared error, p-norm of the activations.
    pub(super) token_losses: Vec<[f64; 2]>,
    pub(super) grad_squares: f64,
    pub(super) aim: NextAim,
    /// Half of it is the most dead latents in an auxiliary loss.
    pub(super) aux_width: usize,
    /// Of a part of a batch: its entries, and those for each auxiliary loss.
    pub(super) part_lists: Vec<Lists>,
    /// For tests: in how many parts a batch is to be taken.
    pub(super) forced_parts: Option<usize>,
}

impl Workspace {
    /// Allocates for steps of up to `shape.batch` tokens with the best instructions of this machine.
    pub fn new(shape: Shape, pool: &Pool) -> Self {
        Self::with_isa(shape, pool, Isa::detect())
    }

    /// The same with a chosen level of instructions.
    ///
    /// # Panics
    /// When this machine cannot run that level, or the shape has a zero or more than 2^32 activations.
    pub fn with_isa(shape: Shape, _pool: &Pool, isa: Isa) -> Self {
        assert!(isa <= Isa::detect(), "this machine has no {}", isa.name());
        let Shape { d_in, d_sae, batch } = shape;
        assert!(d_in > 0 && d_sae > 0 && batch > 0, "no axis is empty");
        let activations = batch.next_multiple_of(PANEL).checked_mul(d_sae);
        assert!(activations.is_some_and(|n| n < u32::MAX as usize), "a batch has less than 2^32 activations");
        Self {
            shape,
            isa,
            n_tokens: 0,
            fired: vec![0; d_sae],
            reconstruction: Buffer::zeros(batch * d_in),
            g: Buffer::default(),
            x_in: Buffer::default(),
            panels: Buffer::default(),
            screen: Screen::new(isa, d_sae),
            limits: Buffer::zeros(batch.next_multiple_of(PANEL)),
            order: (0..d_sae as u32).collect(),
            lists: Lists::new(d_sae),
            rows: Rows::default(),
            aux: vec![AuxEntries::new(d_sae)],
            aux_losses: Vec::new(),
            selection: Selection::default(),
            batch_selection: BatchSelection::new(d_sae),
            dead_limits: Buffer::default(),
            norms: Buffer::default(),
            latent_limits: Vec::new(),
            token_slopes: Vec::new(),
            levels: Levels::default(),
            pursuit: PursuitSpace::default(),
            rank_spares: Spares::default(),
            gather_spares: Spares::default(),
            decode_space: DecodeSpace::default(),
            weight_space: WeightSpace::default(),
            token_losses: Vec::with_capacity(batch),
            grad_squares: 0.0,
            aim: NextAim::default(),
            aux_width: d_in,
            part_lists: Vec::new(),
            forced_parts: None,
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

    /// Total L2 norm of the gradients that the last step wrote: spares the optimiser a pass over them.
    pub fn grad_norm(&self) -> f64 {
        self.grad_squares.sqrt()
    }
}
