//! The way from data files to sequences: what is held out, what is tokenised, and how much of it.

use super::{
    DataError, Place,
    documents::{Content, Document, Documents, Kind},
    packing::{Packer, Rules},
};
use crate::trial::{DataConfig, SequenceSeparator};
use std::{
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
};

/// What packing needs of a tokenizer.
pub trait Encode {
    /// The tokens of a text, without special tokens added.
    ///
    /// # Errors
    /// Why the tokenizer refuses the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>, String>;

    /// The tokens of several texts: one after the other, unless the tokenizer knows how to share them out.
    ///
    /// # Errors
    /// Index of the text that the tokenizer refuses, and why.
    fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, (usize, String)> {
        let encode = |(idx, text): (usize, &&str)| self.encode(text).map_err(|reason| (idx, reason));
        texts.iter().enumerate().map(encode).collect()
    }

    /// The beginning-of-sequence token.
    fn bos(&self) -> Option<u32>;
    /// The end-of-sequence token.
    fn eos(&self) -> Option<u32>;
    /// The separator token.
    fn sep(&self) -> Option<u32>;
    /// Number of tokens the tokenizer knows.
    fn vocab_size(&self) -> usize;
}

/// Sequences of exactly `context_size` tokens, ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Sequences to train on, one after the other.
    pub train: Vec<u32>,
    /// Held-out sequences, one after the other.
    pub eval: Vec<u32>,
}

impl Packed {
    /// Number of sequences to train on.
    pub fn n_train(&self) -> usize {
        self.train.len() / self.context_size
    }

    /// Number of held-out sequences.
    pub fn n_eval(&self) -> usize {
        self.eval.len() / self.context_size
    }
}

/// Packs data files into at most `train_sequences_wanted` sequences to train on, and the held-out ones.
///
/// Held out is the last `eval_fraction` of the documents, at least one, and more of them when they do not fill
/// a sequence; at most `eval_max_tokens` tokens of it are kept. No held-out document is ever trained on. Text
/// that is one single document is cut in two at a blank. Files are read in the order given, and only as much of
/// them is tokenised as is wanted. Tokenised rows give one sequence each: their first `context_size` tokens, as
/// they are.
///
/// # Errors
/// See [`DataError`].
pub fn pack(
    files: &[PathBuf],
    cfg: &DataConfig,
    train_sequences_wanted: usize,
    encode: Option<&dyn Encode>,
    vocab_size: usize,
) -> Result<Packed, DataError> {
    let context_size = cfg.context_size;
    if context_size < 2 {
        return Err(DataError::ContextSize(context_size));
    }
    if !(0.0..1.0).contains(&cfg.eval_fraction) {
        return Err(DataError::EvalFraction(cfg.eval_fraction));
    }
    let documents = Documents::open(files, &cfg.column)?;
    if documents.kind == Kind::Text && encode.is_none() {
        return Err(DataError::NoTokenizer { file: documents.first_file().to_owned() });
    }
    let rules = rules(cfg, documents.kind, encode);
    let job = Job { documents: &documents, rules, encode, vocab_size };
    let eval_wanted = (cfg.eval_max_tokens / context_size).max(1);
    let n = documents.len();
    if n == 1 {
        return job.pack_single(cfg.eval_fraction, train_sequences_wanted, eval_wanted);
    }
    let mut held_out = ((n as f64 * cfg.eval_fraction).ceil() as usize).clamp(1, n - 1);
    let eval = loop {
        let part = job.pack_range(n - held_out..n, eval_wanted)?;
        if part.packer.len() > 0 {
            break part;
        }
        if held_out == n - 1 {
            return Err(job.too_few("held-out", held_out, part.tokens));
        }
        held_out = (2 * held_out).min(n - 1);
    };
    let train = job.pack_range(0..n - held_out, train_sequences_wanted)?;
    if train.packer.len() == 0 {
        return Err(job.too_few("training", n - held_out, train.tokens));
    }
    Ok(Packed {
        context_size,
        train: train.packer.into_sequences(train_sequences_wanted),
        eval: eval.packer.into_sequences(eval_wanted),
    })
}

fn rules(cfg: &DataConfig, kind: Kind, encode: Option<&dyn Encode>) -> Rules {
    let context_size = cfg.context_size;
    let Some(encode) = encode.filter(|_| kind == Kind::Text) else {
        // Whoever tokenised the rows has put into them what belongs there.
        return Rules { context_size, bos: None, separator: None, disable_concat: true };
    };
    let bos = if cfg.prepend_bos { encode.bos() } else { None };
    if cfg.prepend_bos && bos.is_none() {
        tracing::warn!("data.prepend_bos is set, but the tokenizer has no BOS token: none is put in");
    }
    let (name, separator) = match cfg.sequence_separator_token {
        SequenceSeparator::Bos => ("bos", encode.bos()),
        SequenceSeparator::Eos => ("eos", encode.eos()),
        SequenceSeparator::Sep => ("sep", encode.sep()),
        SequenceSeparator::None => ("none", None),
    };
    if cfg.sequence_separator_token != SequenceSeparator::None && separator.is_none() {
        tracing::warn!(
            "data.sequence_separator_token is `{name}`, and the tokenizer has no such token: none is put in"
        );
    }
    Rules { context_size, bos, separator, disable_concat: cfg.disable_concat_sequences }
}

/// What does not change while one data set is packed.
struct Job<'a> {
    documents: &'a Documents,
    rules: Rules,
    encode: Option<&'a dyn Encode>,
    vocab_size: usize,
}

/// Sequences made from some of the documents.
struct Part {
    packer: Packer,
    /// Tokens of those documents.
    tokens: u64,
}

impl Job<'_> {
    /// Packs documents until there are enough sequences.
    fn pack_range(&self, range: Range<usize>, wanted: usize) -> Result<Part, DataError> {
        let mut part = Part { packer: Packer::new(self.rules), tokens: 0 };
        self.documents.read(range, &mut |file, documents| {
            self.push(&mut part, file, documents)?;
            Ok(if part.packer.len() >= wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(part)
    }

    fn push(&self, part: &mut Part, file: &Path, documents: Vec<Document>) -> Result<(), DataError> {
        let place = |document: &Document| Place { file: file.to_owned(), at: document.at };
        let texts: Vec<&str> = documents
            .iter()
            .filter_map(|document| match &document.content {
                Content::Text(text) => Some(text.as_str()),
                Content::Tokens(_) => None,
            })
            .collect();
        if texts.is_empty() {
            for document in &documents {
                let Content::Tokens(tokens) = &document.content else { continue };
                self.push_tokenised(part, tokens, &|| place(document))?;
            }
            return Ok(());
        }
        let encode = self.encode.expect("invariant: text without a tokenizer was refused");
        // All of these documents are text, so an index into the texts is one into the documents.
        let encoded = encode
            .encode_batch(&texts)
            .map_err(|(idx, reason)| DataError::Tokenizer { place: place(&documents[idx]), reason })?;
        for (tokens, document) in encoded.iter().zip(&documents) {
            if let Some(position) = tokens.iter().position(|token| *token as usize >= self.vocab_size) {
                let token = i64::from(tokens[position]);
                return Err(self.outside(place(document), position, token));
            }
            part.tokens += tokens.len() as u64;
            part.packer.push(tokens);
        }
        Ok(())
    }

    /// One row that is one sequence already.
    fn push_tokenised(
        &self,
        part: &mut Part,
        row: &[i64],
        place: &dyn Fn() -> Place,
    ) -> Result<(), DataError> {
        let context_size = self.rules.context_size;
        if row.len() < context_size {
            return Err(DataError::ShortRow { place: place(), found: row.len(), context_size });
        }
        let mut tokens = Vec::with_capacity(context_size);
        for (position, &token) in row[..context_size].iter().enumerate() {
            match u32::try_from(token) {
                Ok(known) if (known as usize) < self.vocab_size => tokens.push(known),
                _ => return Err(self.outside(place(), position, token)),
            }
        }
        part.tokens += row.len() as u64;
        part.packer.push(&tokens);
        Ok(())
    }

    /// Text in one piece: its end is held out.
    fn pack_single(
        &self,
        fraction: f64,
        train_wanted: usize,
        eval_wanted: usize,
    ) -> Result<Packed, DataError> {
        let mut single = None;
        self.documents.read(0..1, &mut |file, mut documents| {
            single = documents.pop().map(|document| (file.to_owned(), document));
            Ok(ControlFlow::Break(()))
        })?;
        let (file, document) = single.expect("invariant: there is one document");
        let Document { at, content: Content::Text(text) } = document else {
            return Err(DataError::OneRow);
        };
        let pack_text = |text: &str, part| {
            let mut packed = Part { packer: Packer::new(self.rules), tokens: 0 };
            let document = Document { at, content: Content::Text(text.to_owned()) };
            self.push(&mut packed, &file, vec![document])?;
            if packed.packer.len() == 0 { Err(self.too_few(part, 1, packed.tokens)) } else { Ok(packed) }
        };
        let mut share = fraction.max(1e-3);
        loop {
            let (train, eval) = text.split_at(cut(&text, share));
            let eval = match pack_text(eval, "held-out") {
                // More than half of the text for evaluation is nobody's wish.
                Err(DataError::TooFewTokens { .. }) if share < 0.5 => {
                    share = (2.0 * share).min(0.5);
                    continue;
                }
                other => other?,
            };
            return Ok(Packed {
                context_size: self.rules.context_size,
                train: pack_text(train, "training")?.packer.into_sequences(train_wanted),
                eval: eval.packer.into_sequences(eval_wanted),
            });
        }
    }

    fn outside(&self, place: Place, position: usize, token: i64) -> DataError {
        DataError::OutsideVocabulary { place, position, token, vocab_size: self.vocab_size }
    }

    fn too_few(&self, part: &'static str, documents: usize, tokens: u64) -> DataError {
        let Rules { context_size, disable_concat, .. } = self.rules;
        let disable_concat = disable_concat && self.documents.kind == Kind::Text;
        DataError::TooFewTokens { part, documents, tokens, context_size, disable_concat }
    }
}

/// Where to cut off the last `share` of a text: at the blank before it, so that no word is torn.
fn cut(text: &str, share: f64) -> usize {
    let mut at = (text.len() as f64 * (1.0 - share)) as usize;
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    text[..at].rfind(char::is_whitespace).unwrap_or(at)
}
