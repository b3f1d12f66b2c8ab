//! Which vector instructions the kernels use, found at run time.

/// A level of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the compiler makes of plain code (SSE2 on x86-64, NEON on aarch64).
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with VNNI, products of bytes: the encoder screens with them. The bits are those of [`Self::Avx512`].
    Avx512Vnni,
}

impl Isa {
    /// The best level of this machine.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                return if is_x86_feature_detected!("avx512vnni") { Self::Avx512Vnni } else { Self::Avx512 };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    /// Every level that this machine can run, the plain one first.
    pub fn available() -> Vec<Self> {
        let best = Self::detect();
        [Self::Plain, Self::Avx2, Self::Avx512, Self::Avx512Vnni]
            .into_iter()
            .filter(|&level| level <= best)
            .collect()
    }

    /// Short name, as recorded with results: `plain`, `avx2`, `avx512`, `avx512vnni`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
        }
    }
}
