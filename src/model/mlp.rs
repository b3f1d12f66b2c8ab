//! The MLP, in the three steps between its hooks.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use candle_nn::{Linear, Module as _};

use super::modules::{BlockModule, Module, Parameters, used};
use super::parallel::for_each_row;
use super::{Activation, DecoderConfig, MlpKind, vector};

/// Plain or gated MLP of one block, as far as it is used.
pub(crate) struct Mlp {
    is_gated: bool,
    /// The projection that the nonlinearity is applied to: W_gate where there is one.
    pre: Option<Linear>,
    /// In a gated MLP, the projection that is multiplied with the gate.
    up: Option<Linear>,
    out: Option<Linear>,
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(cfg: &DecoderConfig, layer: usize, parameters: &mut Parameters) -> Self {
        let part = |module| Module::Block(layer, module);
        let up_or_only = parameters.linear(part(BlockModule::MlpIn));
        let (pre, up) = match cfg.mlp {
            MlpKind::Plain => (up_or_only, None),
            MlpKind::Gated => (parameters.linear(part(BlockModule::MlpGate)), up_or_only),
        };
        let out = parameters.linear(part(BlockModule::MlpOut));
        Self { is_gated: cfg.mlp == MlpKind::Gated, pre, up, out, activation: cfg.activation }
    }

    /// `mlp.hook_pre`: normalised residual (B, P, D) to (B, P, M).
    pub(crate) fn pre(&self, normed: &Tensor) -> Result<Tensor> {
        used(self.pre.as_ref()).forward(normed)
    }

    /// Whether `post` needs the normalised residual.
    pub(crate) fn is_gated(&self) -> bool {
        self.is_gated
    }

    /// `mlp.hook_post`: act(pre), times the up projection of the normalised residual where gated.
    pub(crate) fn post(&self, pre: &Tensor, normed: Option<&Tensor>) -> Result<Tensor> {
        let op = Activate(self.activation);
        match (&self.up, normed) {
            (Some(up), Some(normed)) => pre.apply_op2_no_bwd(&up.forward(normed)?, &op),
            (None, _) => pre.apply_op1_no_bwd(&op),
            (Some(_), None) => unreachable!("invariant: the caller asks is_gated"),
        }
    }

    /// `hook_mlp_out`: (B, P, M) to (B, P, D).
    pub(crate) fn out(&self, post: &Tensor) -> Result<Tensor> {
        used(self.out.as_ref()).forward(post)
    }
}

/// The nonlinearity on contiguous f32, alone or times a second tensor of the same shape.
struct Activate(Activation);

impl Activate {
    fn run(
        &self,
        x: (&CpuStorage, &Layout),
        gated: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        // A step of the loop costs about this many elementary operations.
        const COST: usize = 8;
        let shape = x.1.shape().clone();
        let width = shape.dims().last().copied().unwrap_or(1);
        let x = contiguous(x.0, x.1)?;
        let gated = gated.map(|(storage, layout)| contiguous(storage, layout)).transpose()?;
        let mut out = vec![0f32; x.len()];
        for_each_row(&mut out, width, COST * width, |row, out| {
            let row = row * width..(row + 1) * width;
            let gated = gated.map(|gated| &gated[row.clone()]);
            match self.0 {
                Activation::GeluTanh => vector::gelu_tanh_row(out, &x[row], gated),
                Activation::Silu => vector::silu_row(out, &x[row], gated),
            }
        });
        Ok((CpuStorage::F32(out), shape))
    }
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "mlp-activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run((storage, layout), None)
    }
}

impl CustomOp2 for Activate {
    fn name(&self) -> &'static str {
        "mlp-gated-activation"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if l1.shape() != l2.shape() {
            candle_core::bail!("the gate has shape {:?}, the up projection {:?}", l1.shape(), l2.shape());
        }
        self.run((s1, l1), Some((s2, l2)))
    }
}

/// The numbers of a contiguous f32 tensor.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected contiguous f32 numbers"),
    }
}
