//! Hook points: their names, which are TransformerLens', their order, and what is wrong with a wrong one.

use std::fmt;

use super::{DecoderConfig, ModelError};

/// One place in a model where activations can be read or replaced. Ordered as the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HookPoint {
    /// The block; 0 for the embedding.
    layer: usize,
    site: Site,
}

/// Where activations are read, and where what is computed from them belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Activations that an SAE or a transcoder reads.
    pub input: HookPoint,
    /// Activations that a transcoder computes, later in the forward pass; `None` for an SAE.
    pub output: Option<HookPoint>,
}

impl Hooks {
    /// Where a reconstruction takes the place of activations.
    pub fn replaced(&self) -> HookPoint {
        self.output.unwrap_or(self.input)
    }
}

/// The places within a block in the order of execution, and the embedding before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Site {
    Embed,
    ResidPre,
    AttnZ,
    AttnOut,
    ResidMid,
    MlpNormalized,
    MlpPre,
    MlpPost,
    MlpOut,
    ResidPost,
}

impl HookPoint {
    /// The embedding's output, where a run starts.
    pub(crate) const EMBED: Self = Self { layer: 0, site: Site::Embed };

    /// The hook at a place of a block.
    pub(crate) const fn at(layer: usize, site: Site) -> Self {
        Self { layer, site }
    }

    /// The hook's name.
    pub fn name(&self) -> String {
        self.to_string()
    }

    /// The block that the hook belongs to; `None` for the embedding.
    pub fn layer(&self) -> Option<usize> {
        (self.site != Site::Embed).then_some(self.layer)
    }

    pub(crate) fn block(&self) -> usize {
        self.layer
    }

    pub(crate) fn site(&self) -> Site {
        self.site
    }

    /// The hook after this one, without regard to the number of layers.
    pub(crate) fn next(&self) -> Self {
        let site = match self.site {
            Site::Embed => Site::ResidPre,
            Site::ResidPre => Site::AttnZ,
            Site::AttnZ => Site::AttnOut,
            Site::AttnOut => Site::ResidMid,
            Site::ResidMid => Site::MlpNormalized,
            Site::MlpNormalized => Site::MlpPre,
            Site::MlpPre => Site::MlpPost,
            Site::MlpPost => Site::MlpOut,
            Site::MlpOut => Site::ResidPost,
            Site::ResidPost => return Self { layer: self.layer + 1, site: Site::ResidPre },
        };
        Self { layer: self.layer, site }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.site {
            Site::Embed => f.write_str(self.site.name()),
            site => write!(f, "blocks.{}.{}", self.layer, site.name()),
        }
    }
}

impl Site {
    const OF_A_BLOCK: [Self; 9] = [
        Self::ResidPre,
        Self::AttnZ,
        Self::AttnOut,
        Self::ResidMid,
        Self::MlpNormalized,
        Self::MlpPre,
        Self::MlpPost,
        Self::MlpOut,
        Self::ResidPost,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Embed => "hook_embed",
            Self::ResidPre => "hook_resid_pre",
            Self::AttnZ => "attn.hook_z",
            Self::AttnOut => "hook_attn_out",
            Self::ResidMid => "hook_resid_mid",
            Self::MlpNormalized => "ln2.hook_normalized",
            Self::MlpPre => "mlp.hook_pre",
            Self::MlpPost => "mlp.hook_post",
            Self::MlpOut => "hook_mlp_out",
            Self::ResidPost => "hook_resid_post",
        }
    }
}

impl DecoderConfig {
    /// Finds a hook by its name.
    ///
    /// # Errors
    /// If the model has no such hook; the message lists those it has.
    pub fn hook(&self, name: &str) -> Result<HookPoint, ModelError> {
        self.hooks().find(|hook| hook.to_string() == name).ok_or_else(|| self.unknown_hook(name))
    }

    /// The names of all hooks in the order of execution.
    pub fn hook_names(&self) -> Vec<String> {
        self.hooks().map(|hook| hook.to_string()).collect()
    }

    /// Finds the hook that is read and, for a transcoder, the later one that is computed from it.
    ///
    /// # Errors
    /// If the model has no such hook, or the output comes before the input in the forward pass.
    pub fn hooks_of(&self, input: &str, output: Option<&str>) -> Result<Hooks, ModelError> {
        let input = self.hook(input)?;
        let output = output.map(|name| self.hook(name)).transpose()?;
        match output {
            Some(output) if output <= input => {
                Err(ModelError::HookOrder { input: input.name(), output: output.name() })
            }
            _ => Ok(Hooks { input, output }),
        }
    }

    /// The width of the activations at a hook; for `attn.hook_z` all heads side by side.
    pub fn hook_width(&self, hook: &HookPoint) -> usize {
        match hook.site {
            Site::AttnZ => self.n_heads * self.d_head,
            Site::MlpPre | Site::MlpPost => self.d_mlp,
            Site::Embed
            | Site::ResidPre
            | Site::AttnOut
            | Site::ResidMid
            | Site::MlpNormalized
            | Site::MlpOut
            | Site::ResidPost => self.d_model,
        }
    }

    /// Refuses a hook that was found in another model's configuration and is beyond this one's layers.
    pub(crate) fn check_hook(&self, hook: &HookPoint) -> Result<(), ModelError> {
        if hook.layer < self.n_layers { Ok(()) } else { Err(self.unknown_hook(&hook.to_string())) }
    }

    fn hooks(&self) -> impl Iterator<Item = HookPoint> + '_ {
        let blocks =
            (0..self.n_layers).flat_map(|layer| Site::OF_A_BLOCK.map(|site| HookPoint { layer, site }));
        std::iter::once(HookPoint::EMBED).chain(blocks)
    }

    fn unknown_hook(&self, name: &str) -> ModelError {
        let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
        let suggestion = self
            .hook_names()
            .into_iter()
            .filter(|candidate| likeness(candidate) > 0.5)
            .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        let sites = Site::OF_A_BLOCK.map(Site::name).join(", ");
        let valid = format!("hook_embed, and blocks.N.{{{sites}}} with N from 0 to {}", self.n_layers - 1);
        ModelError::UnknownHook { name: name.to_owned(), suggestion, valid }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::families::tests::tiny_llama;

    #[test]
    fn every_name_finds_its_hook_and_the_order_is_that_of_execution() {
        let cfg = tiny_llama();
        let hooks: Vec<_> = cfg.hook_names().iter().map(|name| cfg.hook(name).unwrap()).collect();
        assert_eq!(hooks.len(), 1 + 9 * cfg.n_layers);
        assert!(hooks.is_sorted());
        assert!(hooks.windows(2).all(|pair| pair[0].next() == pair[1]));
    }

    #[test]
    fn widths_follow_the_site() {
        let cfg = tiny_llama();
        let width = |name: &str| cfg.hook_width(&cfg.hook(name).unwrap());
        assert_eq!(width("hook_embed"), cfg.d_model);
        assert_eq!(width("blocks.1.attn.hook_z"), cfg.n_heads * cfg.d_head);
        assert_eq!(width("blocks.1.mlp.hook_post"), cfg.d_mlp);
        assert_eq!(width("blocks.0.hook_resid_mid"), cfg.d_model);
    }

    #[test]
    fn an_output_comes_after_its_input() {
        let cfg = tiny_llama();
        let hooks = |output| cfg.hooks_of("blocks.0.hook_resid_mid", output);
        let pair = hooks(Some("blocks.0.hook_mlp_out")).unwrap();
        assert_eq!(pair.replaced().name(), "blocks.0.hook_mlp_out");
        assert_eq!(hooks(None).unwrap().replaced(), pair.input);
        assert!(hooks(Some("blocks.1.hook_resid_pre")).is_ok());
        for early in ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_mid"] {
            let message = hooks(Some(early)).unwrap_err().to_string();
            assert!(message.contains("does not come after") && message.contains(early), "{message}");
        }
        assert!(hooks(Some("blocks.9.hook_mlp_out")).unwrap_err().to_string().contains("has no hook"));
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_valid_ones() {
        let cfg = tiny_llama();
        let check = |name: &str, suggestion: &str| {
            let message = cfg.hook(name).unwrap_err().to_string();
            assert!(message.contains(suggestion), "{message}");
            assert!(message.contains("with N from 0 to 1"), "{message}");
        };
        check("blocks.0.hook_mlpout", "did you mean `blocks.0.hook_mlp_out`?");
        check("blocks.1.resid_post", "did you mean `blocks.1.hook_resid_post`?");
        check("hook_z", "the model has no hook `hook_z`");
        check("blocks.2.hook_resid_post", "the model has no hook `blocks.2.hook_resid_post` (did you mean");
    }
}
