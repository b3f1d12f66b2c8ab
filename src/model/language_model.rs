//! A loaded model: configuration, weights and tokenizer, and the runs that a sweep needs.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::decoder::{Decoder, carry_len};
use super::files::Layout;
use super::gguf::GgufFile;
use super::hook::Site;
use super::rotary::Angles;
use super::{DecoderConfig, HookPoint, HookState, ModelError, ModelTokenizer, families, weights};

/// A decoder-only language model that can be stopped at a hook and started from one.
pub struct Model {
    cfg: DecoderConfig,
    /// The first hook that runs may start from.
    from: HookPoint,
    decoder: Decoder,
    tokenizer: Option<ModelTokenizer>,
}

impl Model {
    /// Loads a model from a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// If files or tensors are missing, or the model is of a kind that isn't supported.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let (cfg, tokenizer) = Self::front(path)?;
        let from = HookPoint::EMBED;
        let decoder = Decoder::new(&cfg, weights::load(path, &cfg, &from)?)?;
        Ok(Self { cfg, from, decoder, tokenizer })
    }

    /// Loads only what runs from `hook` or a later one on use: neither what comes before it nor the tokenizer.
    ///
    /// # Errors
    /// As [`Model::load`], or the model has no such hook.
    pub fn load_from(path: &Path, hook: &HookPoint) -> Result<Self, ModelError> {
        let cfg = Self::header(path)?;
        cfg.check_hook(hook)?;
        let decoder = Decoder::new(&cfg, weights::load(path, &cfg, hook)?)?;
        Ok(Self { cfg, from: *hook, decoder, tokenizer: None })
    }

    /// Configuration and tokenizer.
    fn front(path: &Path) -> Result<(DecoderConfig, Option<ModelTokenizer>), ModelError> {
        Ok(match Layout::of(path)? {
            Layout::Folder { config, tokenizer } => {
                let cfg = families::read(&config)?;
                let tokenizer = ModelTokenizer::from_files(&tokenizer, cfg.special)?;
                (cfg, tokenizer)
            }
            Layout::Gguf { file, tokenizer } => {
                let mut gguf = GgufFile::open(&file)?;
                let cfg = gguf.config()?;
                let tokenizer = match ModelTokenizer::from_files(&tokenizer, cfg.special)? {
                    Some(tokenizer) => Some(tokenizer),
                    // Data that is tokenised already needs no tokenizer, so this isn't the end.
                    None => ModelTokenizer::from_gguf(gguf.content(), &file, cfg.special)
                        .inspect_err(|reason| tracing::warn!("{reason}"))
                        .ok(),
                };
                (cfg, tokenizer)
            }
        })
    }

    /// Reads a model's configuration only.
    ///
    /// # Errors
    /// As [`Model::load`], weights aside.
    pub fn header(path: &Path) -> Result<DecoderConfig, ModelError> {
        DecoderConfig::read(path)
    }

    /// The model's configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.cfg
    }

    /// The model's tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&ModelTokenizer> {
        self.tokenizer.as_ref()
    }

    /// Runs tokens (B, P) of u32 up to a hook, and no further.
    ///
    /// # Errors
    /// If the tokens don't fit the model or the hook isn't the model's.
    pub fn run_to_hook(&self, tokens: &Tensor, hook: &HookPoint) -> Result<HookState, ModelError> {
        self.cfg.check_hook(hook)?;
        let positions = self.check_tokens(tokens)?;
        let start = self.decoder.start(tokens)?;
        self.walk(HookPoint::EMBED, start, positions, Some(*hook), &[], |_, _| {})
    }

    /// As [`Model::run_to_hook`] for the later of two hooks, with the activations at the earlier one.
    ///
    /// # Errors
    /// As [`Model::run_to_hook`].
    pub fn run_to_hooks(
        &self,
        tokens: &Tensor,
        hook: &HookPoint,
        later: &HookPoint,
    ) -> Result<(Tensor, HookState), ModelError> {
        [hook, later].into_iter().try_for_each(|hook| self.cfg.check_hook(hook))?;
        let positions = self.check_tokens(tokens)?;
        let start = self.decoder.start(tokens)?;
        let mut seen = None;
        let state = self.walk(
            HookPoint::EMBED,
            start,
            positions,
            Some(*later),
            std::slice::from_ref(hook),
            |at, state| {
                if at == *hook {
                    seen = Some(state.acts.clone());
                }
            },
        )?;
        match seen {
            Some(acts) => Ok((acts, state)),
            None => Err(ModelError::HookOrder { input: hook.name(), output: later.name() }),
        }
    }

    /// Logits (B, P, V) from the state at a hook, whose activations may have been replaced.
    ///
    /// # Errors
    /// If the state's shapes don't fit the hook, or the hook isn't the model's.
    pub fn run_from_hook(&self, state: &HookState, hook: &HookPoint) -> Result<Tensor, ModelError> {
        self.logits(&self.residual_from_hook(state, hook)?)
    }

    /// The residual stream (B, P, D) after the last block, from the state at a hook.
    pub(super) fn residual_from_hook(
        &self,
        state: &HookState,
        hook: &HookPoint,
    ) -> Result<Tensor, ModelError> {
        self.cfg.check_hook(hook)?;
        self.check_start(hook)?;
        let positions = self.check_state(state, hook)?;
        Ok(self.walk(*hook, state.clone(), positions, None, &[], |_, _| {})?.acts)
    }

    /// Logits (B, P, V) of the residual stream (B, P, D) after the last block.
    pub(super) fn logits(&self, residual: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.decoder.finish(residual)?)
    }

    /// Logits (B, P, V) of tokens (B, P).
    ///
    /// # Errors
    /// If the tokens don't fit the model.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        self.run_from_hook(&self.run_to_hook(tokens, &HookPoint::EMBED)?, &HookPoint::EMBED)
    }

    /// The activations at several hooks by their names, and the logits, all from one pass.
    ///
    /// # Errors
    /// As [`Model::run_to_hook`].
    pub fn run_with_hooks(
        &self,
        tokens: &Tensor,
        hooks: &[HookPoint],
    ) -> Result<(BTreeMap<String, Tensor>, Tensor), ModelError> {
        hooks.iter().try_for_each(|hook| self.cfg.check_hook(hook))?;
        let positions = self.check_tokens(tokens)?;
        let mut seen = BTreeMap::new();
        let start = self.decoder.start(tokens)?;
        let end = self.walk(HookPoint::EMBED, start, positions, None, hooks, |at, state| {
            if hooks.contains(&at) {
                seen.insert(at.name(), state.acts.clone());
            }
        })?;
        Ok((seen, self.decoder.finish(&end.acts)?))
    }

    /// Goes from one hook to another, or to the end of the last block, and shows the states on the way, those at
    /// the hooks `shown` in any case.
    fn walk(
        &self,
        mut at: HookPoint,
        mut state: HookState,
        positions: usize,
        until: Option<HookPoint>,
        shown: &[HookPoint],
        mut observe: impl FnMut(HookPoint, &HookState),
    ) -> Result<HookState, ModelError> {
        let angles = Angles::new(&self.cfg, positions);
        loop {
            observe(at, &state);
            let next = at.next();
            if until == Some(at) || next.block() == self.cfg.n_layers {
                // What can be had from the rest is not kept.
                state.carry.truncate(carry_len(&at));
                return Ok(state);
            }
            let is_norm = next.site() == Site::MlpNormalized;
            if is_norm && until != Some(next) && !shown.contains(&next) {
                state = self.decoder.advance_past_norm(at, state)?;
                at = next.next();
            } else {
                state = self.decoder.advance(at, state, angles.as_ref())?;
                at = next;
            }
        }
    }

    /// Refuses to start before what is loaded.
    fn check_start(&self, hook: &HookPoint) -> Result<(), ModelError> {
        if *hook >= self.from {
            Ok(())
        } else {
            Err(ModelError::NotLoaded { hook: hook.name(), from: self.from.name() })
        }
    }

    /// Checks tokens against vocabulary and context, and that a run may start with them; gives the number of positions.
    fn check_tokens(&self, tokens: &Tensor) -> Result<usize, ModelError> {
        self.check_start(&HookPoint::EMBED)?;
        let shape = |found: &Tensor| ModelError::InputShape {
            what: "the tensor of tokens".to_owned(),
            found: found.dims().to_vec(),
            expected: "(sequences, positions) of u32".to_owned(),
        };
        let &[n_sequences, positions] = tokens.dims() else { return Err(shape(tokens)) };
        if tokens.dtype() != DType::U32 || n_sequences == 0 {
            return Err(shape(tokens));
        }
        self.check_positions(positions)?;
        let ids = tokens.flatten_all()?.to_vec1::<u32>()?;
        match ids.into_iter().find(|&token| token as usize >= self.cfg.vocab_size) {
            Some(token) => Err(ModelError::TokenOutOfRange { token, vocab_size: self.cfg.vocab_size }),
            None => Ok(positions),
        }
    }

    fn check_positions(&self, positions: usize) -> Result<(), ModelError> {
        if (1..=self.cfg.n_ctx).contains(&positions) {
            Ok(())
        } else {
            Err(ModelError::ContextLength { positions, n_ctx: self.cfg.n_ctx })
        }
    }

    /// Checks a state that the caller may have changed; gives the number of positions.
    fn check_state(&self, state: &HookState, hook: &HookPoint) -> Result<usize, ModelError> {
        let wrong = |what: &str, found: &[usize], expected: String| {
            Err(ModelError::InputShape { what: format!("{what} at {hook}"), found: found.to_vec(), expected })
        };
        let width = self.cfg.hook_width(hook);
        let &[n_sequences, positions, found] = state.acts.dims() else {
            let expected = format!("(sequences, positions, {width})");
            return wrong("the tensor of activations", state.acts.dims(), expected);
        };
        if found != width || n_sequences == 0 || state.acts.dtype() != DType::F32 {
            let expected = format!("(sequences, positions, {width}) of f32");
            return wrong("the tensor of activations", state.acts.dims(), expected);
        }
        self.check_positions(positions)?;
        if state.carry.len() != carry_len(hook) {
            let expected = format!("{} tensor(s)", carry_len(hook));
            return wrong("the list of carried tensors", &[state.carry.len()], expected);
        }
        let stream = [n_sequences, positions, self.cfg.d_model];
        match state.carry.iter().find(|carried| carried.dims() != stream) {
            Some(carried) => wrong("the carried residual stream", carried.dims(), format!("{stream:?}")),
            None => Ok(positions),
        }
    }
}
