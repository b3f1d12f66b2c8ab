//! The parameters of an SAE as flat arrays. [`Params`] also holds gradients and Adam's two moments.

/// Sizes of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// D: width of one activation.
    pub d_in: usize,
    /// F: number of latents.
    pub d_sae: usize,
    /// B: the largest number of tokens in a batch.
    pub batch: usize,
}

/// One value per parameter of an SAE: the parameters themselves, their gradients, or an Adam moment.
///
/// In gradients that a step of this module wrote, `b_enc[f] == -0.0` (with the sign) says that both rows of
/// latent `f` are entirely zero; no sum ever gives that value otherwise. `clip_and_adam` need not read them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Params<T = f32> {
    /// Encoder weights, (F, D): row `f` is the direction that latent `f` reads.
    pub w_enc: Vec<T>,
    /// Decoder weights, (F, D): row `f` is the direction that latent `f` writes.
    pub w_dec: Vec<T>,
    /// Encoder bias, (F).
    pub b_enc: Vec<T>,
    /// Decoder bias, (D).
    pub b_dec: Vec<T>,
}

impl<T: Copy + Default> Params<T> {
    /// All zeros.
    pub fn zeros(d_in: usize, d_sae: usize) -> Self {
        Self {
            w_enc: vec![T::default(); d_in * d_sae],
            w_dec: vec![T::default(); d_in * d_sae],
            b_enc: vec![T::default(); d_sae],
            b_dec: vec![T::default(); d_in],
        }
    }

    /// D: width of one activation.
    pub fn d_in(&self) -> usize {
        self.b_dec.len()
    }

    /// F: number of latents.
    pub fn d_sae(&self) -> usize {
        self.b_enc.len()
    }

    /// The four arrays in SAELens' order of parameters: `b_dec`, `w_dec`, `w_enc`, `b_enc`.
    pub fn arrays(&self) -> [&[T]; 4] {
        [&self.b_dec, &self.w_dec, &self.w_enc, &self.b_enc]
    }

    /// Panics unless the arrays have the lengths of one SAE with these sizes.
    pub(crate) fn check(&self, d_in: usize, d_sae: usize) {
        assert_eq!(self.b_dec.len(), d_in, "b_dec has one value per input");
        assert_eq!(self.b_enc.len(), d_sae, "b_enc has one value per latent");
        assert_eq!(self.w_enc.len(), d_in * d_sae, "w_enc is (F, D)");
        assert_eq!(self.w_dec.len(), d_in * d_sae, "w_dec is (F, D)");
    }
}

impl Params<f32> {
    /// The same values in double precision, for [`super::reference`].
    pub fn to_f64(&self) -> Params<f64> {
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect();
        Params {
            w_enc: wide(&self.w_enc),
            w_dec: wide(&self.w_dec),
            b_enc: wide(&self.b_enc),
            b_dec: wide(&self.b_dec),
        }
    }
}

impl Params<f64> {
    /// The same values rounded to single precision.
    pub fn to_f32(&self) -> Params<f32> {
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        Params {
            w_enc: narrow(&self.w_enc),
            w_dec: narrow(&self.w_dec),
            b_enc: narrow(&self.b_enc),
            b_dec: narrow(&self.b_dec),
        }
    }
}
