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
    /// What a pre-activation must exceed for its latent to be active, (F) in a JumpReLU; else empty.
    pub threshold: Vec<T>,
    /// Log of a magnitude's scale, (F) in a gated SAE, whose `b_enc` is the bias of its gates; else empty.
    pub r_mag: Vec<T>,
    /// Bias of a magnitude, (F) in a gated SAE; else empty.
    pub b_mag: Vec<T>,
}

impl<T: Copy + Default> Params<T> {
    /// All zeros, of the parameters that every SAE has.
    pub fn zeros(d_in: usize, d_sae: usize) -> Self {
        Self {
            w_enc: vec![T::default(); d_in * d_sae],
            w_dec: vec![T::default(); d_in * d_sae],
            b_enc: vec![T::default(); d_sae],
            b_dec: vec![T::default(); d_in],
            ..Self::default()
        }
    }

    /// All zeros, of the parameters that this one has.
    pub fn zeros_like(&self) -> Self {
        let [b_dec, w_dec, w_enc, b_enc, threshold, r_mag, b_mag] =
            self.arrays().map(|array| vec![T::default(); array.len()]);
        Self { w_enc, w_dec, b_enc, b_dec, threshold, r_mag, b_mag }
    }

    /// D: width of one activation.
    pub fn d_in(&self) -> usize {
        self.b_dec.len()
    }

    /// F: number of latents.
    pub fn d_sae(&self) -> usize {
        self.b_enc.len()
    }

    /// Names of the arrays, in the order of [`Params::arrays`].
    pub const NAMES: [&str; 7] = ["b_dec", "w_dec", "w_enc", "b_enc", "threshold", "r_mag", "b_mag"];

    /// All arrays, empty ones too.
    pub fn arrays(&self) -> [&[T]; 7] {
        [&self.b_dec, &self.w_dec, &self.w_enc, &self.b_enc, &self.threshold, &self.r_mag, &self.b_mag]
    }

    /// [`Params::arrays`], to be written.
    pub fn arrays_mut(&mut self) -> [&mut [T]; 7] {
        [
            &mut self.b_dec,
            &mut self.w_dec,
            &mut self.w_enc,
            &mut self.b_enc,
            &mut self.threshold,
            &mut self.r_mag,
            &mut self.b_mag,
        ]
    }

    /// Sets all that belongs to one latent to 0.
    pub fn clear_latent(&mut self, latent: usize) {
        let d_in = self.d_in();
        for rows in [&mut self.w_enc, &mut self.w_dec] {
            rows[latent * d_in..][..d_in].fill(T::default());
        }
        for array in [&mut self.b_enc, &mut self.threshold, &mut self.r_mag, &mut self.b_mag] {
            array.get_mut(latent).into_iter().for_each(|value| *value = T::default());
        }
    }

    /// Panics unless the arrays have the lengths of one SAE with these sizes.
    pub(crate) fn check(&self, d_in: usize, d_sae: usize) {
        assert_eq!(self.b_dec.len(), d_in, "b_dec has one value per input");
        assert_eq!(self.b_enc.len(), d_sae, "b_enc has one value per latent");
        assert_eq!(self.w_enc.len(), d_in * d_sae, "w_enc is (F, D)");
        assert_eq!(self.w_dec.len(), d_in * d_sae, "w_dec is (F, D)");
        for array in [&self.threshold, &self.r_mag, &self.b_mag] {
            assert!(
                [0, d_sae].contains(&array.len()),
                "a setting of latents has one value for each, or none"
            );
        }
    }
}

impl Params<f32> {
    /// The same values in double precision, for [`super::reference`].
    pub fn to_f64(&self) -> Params<f64> {
        let [b_dec, w_dec, w_enc, b_enc, threshold, r_mag, b_mag] =
            self.arrays().map(|array| array.iter().map(|&value| f64::from(value)).collect());
        Params { w_enc, w_dec, b_enc, b_dec, threshold, r_mag, b_mag }
    }
}

impl Params<f64> {
    /// The same values rounded to single precision.
    pub fn to_f32(&self) -> Params<f32> {
        let [b_dec, w_dec, w_enc, b_enc, threshold, r_mag, b_mag] =
            self.arrays().map(|array| array.iter().map(|&value| value as f32).collect());
        Params { w_enc, w_dec, b_enc, b_dec, threshold, r_mag, b_mag }
    }
}
