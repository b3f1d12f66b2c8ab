//! GPT-2's kind of tokenizer from the files that were usual before `tokenizer.json`: the vocabulary, the list of
//! merges, and whatever names special and added tokens.
//!
//! What is built is what `GPT2TokenizerFast` of Python's transformers builds from the same files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::ModelError;

/// Where such a tokenizer is written down.
#[derive(Debug)]
pub(crate) struct BytePairFiles {
    /// `vocab.json`: token → id.
    pub(crate) vocab: PathBuf,
    /// `merges.txt`: pairs of tokens, the most frequent first.
    pub(crate) merges: PathBuf,
    /// `added_tokens.json`: tokens that came after training → id.
    pub(crate) added: Option<PathBuf>,
}

/// The tokens that stand for structure, in the order in which those new to the vocabulary get their ids.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The class whose files these are, without the `Fast` that some names end in.
const CLASS: &str = "GPT2Tokenizer";

/// What GPT-2's class takes where the files say nothing.
pub(crate) fn defaults() -> Value {
    json!({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
}

/// The class that the files are for, if it is another one: those split text by other rules.
pub(crate) fn other_class(named: &[Value]) -> Option<&str> {
    let class = named.iter().find_map(|json| json.get("tokenizer_class")).and_then(Value::as_str)?;
    (class.strip_suffix("Fast").unwrap_or(class) != CLASS).then_some(class)
}

/// Builds the tokenizer; `named` are the files that name special tokens, the first that names one wins.
pub(crate) fn build(files: &BytePairFiles, named: &[Value]) -> Result<Tokenizer, ModelError> {
    let failed = |reason: tokenizers::Error| ModelError::Tokenizer {
        path: files.vocab.clone(),
        message: reason.to_string(),
    };
    let text = |path: &Path| std::fs::read_to_string(path).map_err(ModelError::read(path));
    let json = |path: &Path| {
        serde_json::from_str::<Map<String, Value>>(&text(path)?).map_err(ModelError::json(path))
    };
    let bad_id = |path: &Path, token: &str| ModelError::Tokenizer {
        path: path.to_owned(),
        message: format!("the id of `{token}` is not a whole number"),
    };

    let mut vocab = Vec::new();
    for (token, id) in json(&files.vocab)? {
        let id = whole(&id).ok_or_else(|| bad_id(&files.vocab, &token))?;
        vocab.push((token, id));
    }
    let model = BPE::builder()
        .vocab_and_merges(
            vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(),
            merges(&files.merges)?,
        )
        .build()
        .map_err(failed)?;
    let named_first = |key: &str| named.iter().find_map(|json| json.get(key));
    let prefix_space = named_first("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(prefix_space, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));

    let mut specials: Vec<AddedToken> =
        ROLES.into_iter().filter_map(named_first).filter_map(|token| added_token(token, true)).collect();
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let more = named_first(key).and_then(Value::as_array).into_iter().flatten();
        specials.extend(more.filter_map(|token| added_token(token, true)));
    }
    // Tokens with an id of their own come first, in the order of their ids.
    let mut numbered: Vec<(u32, AddedToken)> = Vec::new();
    match named_first("added_tokens_decoder").and_then(Value::as_object) {
        Some(tokens) => {
            for (id, token) in tokens {
                let token = added_token(token, false);
                numbered.extend(id.parse().ok().zip(token));
            }
        }
        None => {
            let path = files.added.as_deref();
            for (token, id) in path.map(json).transpose()?.unwrap_or_default() {
                let id = whole(&id).ok_or_else(|| bad_id(path.unwrap_or(&files.vocab), &token))?;
                let special = specials.iter().find(|special| special.content == token);
                numbered.push((id, special.cloned().unwrap_or_else(|| AddedToken::from(token, false))));
            }
        }
    }
    numbered.sort_by_key(|(id, _)| *id);
    let placed: BTreeSet<&str> = numbered.iter().map(|(_, token)| token.content.as_str()).collect();
    specials.retain(|token| !placed.contains(token.content.as_str()));
    tokenizer.add_tokens(numbered.iter().map(|(_, token)| token.clone())).map_err(failed)?;
    tokenizer.add_tokens(specials).map_err(failed)?;
    for (id, token) in &numbered {
        let found = tokenizer.token_to_id(&token.content);
        if found != Some(*id) {
            let message = format!("`{}` should be token {id} and would be {found:?}", token.content);
            return Err(ModelError::Tokenizer { path: files.vocab.clone(), message });
        }
    }
    Ok(tokenizer)
}

/// The pairs in `merges.txt`, a line each after a line with the version.
fn merges(path: &Path) -> Result<Vec<(String, String)>, ModelError> {
    let text = std::fs::read_to_string(path).map_err(ModelError::read(path))?;
    let mut merges = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || (at == 0 && line.starts_with("#version")) {
            continue;
        }
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            let message = format!("line {} is not a pair of tokens: {line:?}", at + 1);
            return Err(ModelError::Tokenizer { path: path.to_owned(), message });
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// A token written as its text alone or with its properties. `None` where none is meant.
fn added_token(token: &Value, special: bool) -> Option<AddedToken> {
    let content = token.as_str().or_else(|| token.get("content")?.as_str())?;
    let is = |key: &str| token.get(key).and_then(Value::as_bool);
    Some(
        AddedToken::from(content, is("special").unwrap_or(false) || special)
            .single_word(is("single_word").unwrap_or(false))
            .lstrip(is("lstrip").unwrap_or(false))
            .rstrip(is("rstrip").unwrap_or(false)),
    )
}

fn whole(id: &Value) -> Option<u32> {
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use super::super::ModelTokenizer;
    use super::super::config::SpecialTokens;
    use super::super::files::TokenizerFiles;
    use super::*;

    fn load(folder: &Path) -> Result<ModelTokenizer, ModelError> {
        let files = TokenizerFiles::of_folder(folder);
        Ok(ModelTokenizer::from_files(&files, SpecialTokens::default())?.unwrap())
    }

    #[test]
    fn tokens_are_those_of_transformers() {
        for name in ["gpt2", "bare", "extended", "numbered"] {
            let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer");
            let folder = Path::new(fixtures).join(name);
            let tokenizer = load(&folder).unwrap();
            let golden: Value =
                serde_json::from_str(&std::fs::read_to_string(folder.join("tokens.json")).unwrap()).unwrap();
            assert_eq!(json!(tokenizer.vocab_size()), golden["vocab_size"], "{name}");
            let eos = tokenizer.eos_id();
            for (found, role) in [(eos, "eos"), (tokenizer.bos_id(), "bos"), (tokenizer.pad_id(), "pad")] {
                // Where transformers has none, TransformerLens takes the end.
                let expected = if golden[role].is_null() { json!(eos) } else { golden[role].clone() };
                assert_eq!(json!(found), expected, "{name} {role}");
            }
            for case in golden["cases"].as_array().unwrap() {
                let ids = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
                assert_eq!(json!(ids), case["tokens"], "{name} {case}");
                assert_eq!(json!(tokenizer.decode(&ids, false).unwrap()), case["decoded"], "{name}");
                assert_eq!(json!(tokenizer.decode(&ids, true).unwrap()), case["decoded_plain"], "{name}");
            }
        }
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let fails = |vocab: &str, merges: &str, added: &str, parts: &[&str]| {
            for (name, text) in [("vocab.json", vocab), ("merges.txt", merges), ("added_tokens.json", added)]
            {
                std::fs::write(folder.path().join(name), text).unwrap();
            }
            let message = load(folder.path()).unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        };
        let vocab = r#"{"a": 0, "b": 1, "ab": 2}"#;
        fails("[]", "", "{}", &["vocab.json"]);
        fails(r#"{"a": -1}"#, "", "{}", &["vocab.json", "the id of `a` is not a whole number"]);
        fails(vocab, "a b\na b c\n", "{}", &["merges.txt", "line 2 is not a pair of tokens"]);
        fails(vocab, "a c\n", "{}", &["vocab.json", "c"]);
        fails(
            vocab,
            "a b\n",
            r#"{"new": 9}"#,
            &["vocab.json", "`new` should be token 9 and would be Some(3)"],
        );
    }
}
