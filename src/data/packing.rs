//! Tokenised documents → sequences of equal length, by the rules of SAELens 6.54.
//!
//! One sequence is filled after the other. Each starts with BOS where one is set, unless its first token
//! already is it; between two documents stands the separator, unless the second one starts with it; a document
//! that does not fit goes on in the next sequence, again after BOS. What is left at the end is dropped, and so
//! are empty documents. Without concatenation every document gives at most one sequence: BOS and its first
//! tokens, if there are enough. `tests/fixtures/data/packing.json` holds what SAELens itself makes of the edge
//! cases.

/// The rules, with token numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Tokens in a sequence, at least 2.
    pub(crate) context_size: usize,
    /// First token of every sequence.
    pub(crate) bos: Option<u32>,
    /// Token between two documents.
    pub(crate) separator: Option<u32>,
    /// One document per sequence.
    pub(crate) disable_concat: bool,
}

/// Packs documents one by one.
#[derive(Debug)]
pub(crate) struct Packer {
    rules: Rules,
    /// The sequence being filled; empty or shorter than a context.
    open: Vec<u32>,
    /// All whole sequences, one after the other.
    sequences: Vec<u32>,
}

impl Packer {
    pub(crate) fn new(rules: Rules) -> Self {
        debug_assert!(rules.context_size >= 2, "a sequence of BOS alone would never use up a document");
        Self { rules, open: Vec::with_capacity(rules.context_size), sequences: Vec::new() }
    }

    /// Whole sequences so far.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len() / self.rules.context_size
    }

    /// The first `n` sequences, or all of them.
    pub(crate) fn into_sequences(mut self, n: usize) -> Vec<u32> {
        self.sequences.truncate(n.saturating_mul(self.rules.context_size));
        self.sequences
    }

    /// Adds a document.
    pub(crate) fn push(&mut self, document: &[u32]) {
        if self.rules.disable_concat {
            self.push_alone(document);
            return;
        }
        let mut rest = document;
        // A document that starts a sequence is not separated from anything; one that continues goes on
        // without a separator too, because then `open` is empty.
        while let Some(&first) = rest.first() {
            let prefix = if self.open.is_empty() { self.rules.bos } else { self.rules.separator };
            if let Some(token) = prefix.filter(|token| *token != first) {
                self.open.push(token);
            }
            let taken = rest.len().min(self.rules.context_size - self.open.len());
            self.open.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.open.len() == self.rules.context_size {
                self.sequences.append(&mut self.open);
            }
        }
    }

    fn push_alone(&mut self, document: &[u32]) {
        let n = self.rules.context_size;
        match (self.rules.bos, document.first()) {
            (Some(bos), Some(&first)) if first != bos && document.len() >= n - 1 => {
                self.sequences.push(bos);
                self.sequences.extend_from_slice(&document[..n - 1]);
            }
            _ if document.len() >= n => self.sequences.extend_from_slice(&document[..n]),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    fn pack(rules: Rules, documents: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let mut packer = Packer::new(rules);
        for document in documents {
            packer.push(document);
        }
        let n = packer.len();
        packer.into_sequences(n).chunks(rules.context_size).map(<[u32]>::to_vec).collect()
    }

    #[derive(Deserialize)]
    struct Case {
        name: String,
        context_size: usize,
        bos: Option<u32>,
        separator: Option<u32>,
        disable_concat: bool,
        documents: Vec<Vec<u32>>,
        sequences: Vec<Vec<u32>>,
    }

    #[test]
    fn equals_saelens_on_edge_cases() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/packing.json");
        let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(cases.len() > 100, "{}", cases.len());
        for case in cases {
            let rules = Rules {
                context_size: case.context_size,
                bos: case.bos,
                separator: case.separator,
                disable_concat: case.disable_concat,
            };
            assert_eq!(
                pack(rules, &case.documents),
                case.sequences,
                "{}: {rules:?} {:?}",
                case.name,
                case.documents
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn nothing_is_lost_or_reordered(
            documents in proptest::collection::vec(proptest::collection::vec(2_u32..50, 0..40), 0..30),
            context_size in 2_usize..20,
            bos in proptest::option::of(Just(0_u32)),
            separator in proptest::option::of(0_u32..2),
        ) {
            let sequences = pack(Rules { context_size, bos, separator, disable_concat: false }, &documents);
            let all: Vec<u32> = documents.concat();
            let kept: Vec<u32> = sequences.concat().into_iter().filter(|token| *token >= 2).collect();
            prop_assert_eq!(&kept[..], &all[..kept.len()]);
            // What is dropped at the end fits into one open sequence.
            prop_assert!(all.len() - kept.len() < context_size);
            for sequence in &sequences {
                prop_assert_eq!(sequence.len(), context_size);
                prop_assert!(bos.is_none() || sequence[0] == 0);
            }
        }

        #[test]
        fn sequences_do_not_depend_on_what_follows(
            documents in proptest::collection::vec(proptest::collection::vec(0_u32..9, 0..20), 1..20),
            context_size in 2_usize..12,
            disable_concat: bool,
        ) {
            let rules = Rules { context_size, bos: Some(0), separator: Some(0), disable_concat };
            let all = pack(rules, &documents);
            let some = pack(rules, &documents[..documents.len() / 2]);
            prop_assert_eq!(&all[..some.len()], &some[..]);
        }
    }
}
