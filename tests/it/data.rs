//! Data files → packed sequences.

use saesweep::{
    data::{DataError, Encode, Packed, pack, resolve},
    trial::{DataConfig, SequenceSeparator},
};
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};

const BOS: u32 = 0;
const VOCABULARY: usize = 100_000;

/// Every letter is a token.
#[derive(Default)]
struct Letters {
    texts: Cell<usize>,
}

impl Encode for Letters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.texts.set(self.texts.get() + 1);
        if text.contains('!') {
            Err("it dislikes `!`".to_owned())
        } else {
            Ok(text.chars().map(u32::from).collect())
        }
    }
    fn bos(&self) -> Option<u32> {
        Some(BOS)
    }
    fn eos(&self) -> Option<u32> {
        Some(1)
    }
    fn sep(&self) -> Option<u32> {
        None
    }
    fn vocab_size(&self) -> usize {
        VOCABULARY
    }
}

fn cfg() -> DataConfig {
    DataConfig {
        dataset: String::new(),
        column: String::new(),
        context_size: 5,
        prepend_bos: true,
        sequence_separator_token: SequenceSeparator::Bos,
        disable_concat_sequences: false,
        eval_fraction: 0.02,
        eval_max_tokens: 1000,
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data")).join(name)
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn letters(files: &[PathBuf], cfg: &DataConfig) -> Result<Packed, DataError> {
    pack(files, cfg, 1000, Some(&Letters::default()), VOCABULARY)
}

/// Sequences as text, with `^` for BOS.
fn shown(tokens: &[u32], context_size: usize) -> Vec<String> {
    let letter = |token: &u32| if *token == BOS { '^' } else { char::from_u32(*token).unwrap() };
    tokens.chunks(context_size).map(|sequence| sequence.iter().map(letter).collect()).collect()
}

fn jsonl(texts: &[&str]) -> String {
    texts.iter().map(|text| serde_json::json!({"text": text}).to_string() + "\n").collect()
}

#[test]
fn last_documents_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "a.jsonl", &jsonl(&["abcdef", "ghij", "klmn", "opqr", "stuvwx"]));
    let packed = letters(std::slice::from_ref(&file), &cfg()).unwrap();
    assert_eq!(shown(&packed.train, 5), ["^abcd", "^ef^g", "^hij^", "^klmn", "^opqr"]);
    assert_eq!(shown(&packed.eval, 5), ["^stuv"]);
    let packed = letters(std::slice::from_ref(&file), &DataConfig { eval_fraction: 0.5, ..cfg() }).unwrap();
    assert_eq!(shown(&packed.train, 5), ["^abcd", "^ef^g"]);
    assert_eq!(shown(&packed.eval, 5), ["^klmn", "^opqr", "^stuv"]);
    let capped = DataConfig { eval_fraction: 0.5, eval_max_tokens: 11, ..cfg() };
    assert_eq!(shown(&letters(std::slice::from_ref(&file), &capped).unwrap().eval, 5), ["^klmn", "^opqr"]);
    // Of one sequence at least.
    let capped = DataConfig { eval_max_tokens: 0, ..cfg() };
    assert_eq!(letters(&[file], &capped).unwrap().n_eval(), 1);
}

#[test]
fn more_is_held_out_when_the_last_document_fills_no_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "a.jsonl", &jsonl(&["abcdef", "ghij", "k", "l", "m"]));
    let packed = letters(&[file], &cfg()).unwrap();
    assert_eq!(shown(&packed.eval, 5), ["^ghij", "^k^l^"]);
    assert_eq!(shown(&packed.train, 5), ["^abcd"]);
}

#[test]
fn only_what_is_wanted_is_tokenised() {
    let folder = tempfile::tempdir().unwrap();
    let story = "once upon a time ".repeat(100);
    let texts = vec![story.as_str(); 20_000];
    let file = written(folder.path(), "a.jsonl", &jsonl(&texts));
    let encode = Letters::default();
    let packed =
        pack(&[file], &DataConfig { eval_fraction: 1e-4, ..cfg() }, 100, Some(&encode), VOCABULARY).unwrap();
    assert_eq!((packed.n_train(), packed.n_eval()), (100, 200));
    assert!(encode.texts.get() < 1000, "{}", encode.texts.get());
}

#[test]
fn separator_and_bos_follow_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(folder.path(), "a.jsonl", &jsonl(&["abcdef", "gh", "ijklmn", "stuvwx"]));
    let check = |cfg: DataConfig, expected: &[&str]| {
        assert_eq!(shown(&letters(std::slice::from_ref(&file), &cfg).unwrap().train, 5), expected);
    };
    let none = SequenceSeparator::None;
    check(DataConfig { sequence_separator_token: none, ..cfg() }, &["^abcd", "^efgh", "^ijkl"]);
    check(DataConfig { sequence_separator_token: none, prepend_bos: false, ..cfg() }, &["abcde", "fghij"]);
    let eos = SequenceSeparator::Eos;
    check(
        DataConfig { sequence_separator_token: eos, ..cfg() },
        &["^abcd", "^ef\u{1}g", "^h\u{1}ij", "^klmn"],
    );
    check(DataConfig { disable_concat_sequences: true, ..cfg() }, &["^abcd", "^ijkl"]);
    // A token the tokenizer does not have separates nothing.
    let sep = SequenceSeparator::Sep;
    check(DataConfig { sequence_separator_token: sep, ..cfg() }, &["^abcd", "^efgh", "^ijkl"]);
}

#[test]
fn every_format_gives_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["one, two", "three \"four\"\nfive", "six", "1984", "last words"];
    let quoted: String = texts.iter().map(|text| format!("7,\"{}\"\n", text.replace('"', "\"\""))).collect();
    let csv = written(folder.path(), "a.csv", &format!("id,text\n{quoted}"));
    let json = written(folder.path(), "a.jsonl", &jsonl(&texts));
    let txt = written(folder.path(), "a.txt", &texts.join("\n<|endoftext|>\n"));
    let many: Vec<PathBuf> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| written(folder.path(), &format!("b{i}.txt"), text))
        .collect();
    let expected = letters(&[json], &cfg()).unwrap();
    assert_eq!(expected.n_train(), 8);
    for files in [vec![csv], vec![txt], many] {
        assert_eq!(letters(&files, &cfg()).unwrap(), expected, "{files:?}");
    }
}

#[test]
fn parquet_text_is_read_across_row_groups_and_files() {
    let plain = DataConfig { prepend_bos: false, sequence_separator_token: SequenceSeparator::None, ..cfg() };
    for name in ["text.parquet", "large_text.parquet"] {
        let files = [fixture(name), fixture("text.parquet")];
        let packed =
            letters(&files, &DataConfig { context_size: 9, eval_fraction: 0.3, ..plain.clone() }).unwrap();
        // Row 3 is null in both files, 6 of 20 rows are held out.
        let expected: Vec<String> =
            (0..10).filter(|i| *i != 3).map(|i| format!("story {i} ä")[..].to_owned()).collect();
        let all = [&expected[..], &expected[..3]].concat().concat();
        let found = shown(&packed.train, 9).concat();
        assert!(found.len() > 100 && all.starts_with(&found), "{found}");
        assert!(expected[3..].concat().starts_with(&shown(&packed.eval, 9).concat()));
    }
}

#[test]
fn tokenised_rows_are_sequences() {
    for name in ["tokens_i32.parquet", "tokens_i64.parquet"] {
        let packed = pack(&[fixture(name)], &cfg(), 4, None, VOCABULARY).unwrap();
        assert_eq!(
            packed.train,
            [0, 1, 2, 3, 4, 100, 101, 102, 103, 104, 200, 201, 202, 203, 204, 300, 301, 302, 303, 304]
        );
        assert_eq!(packed.eval, [600, 601, 602, 603, 604]);
    }
    let folder = tempfile::tempdir().unwrap();
    let json = written(folder.path(), "a.jsonl", "{\"tokens\": [1,2,3]}\n{\"tokens\": [4,5,6,7]}\n");
    let csv = written(folder.path(), "a.csv", "id,tokens\n0,\"[1, 2, 3]\"\n1,\"[4, 5, 6, 7]\"\n");
    for file in [json, csv] {
        let packed = pack(&[file], &DataConfig { context_size: 3, ..cfg() }, 9, None, 8).unwrap();
        assert_eq!((packed.train, packed.eval), (vec![1, 2, 3], vec![4, 5, 6]));
    }
}

#[test]
fn single_text_is_cut_at_a_blank() {
    let folder = tempfile::tempdir().unwrap();
    let text = "the quick brown fox jumps over the lazy dog ".repeat(20);
    let file = written(folder.path(), "book.txt", &text);
    let plain = DataConfig { prepend_bos: false, eval_fraction: 0.1, ..cfg() };
    let packed = letters(&[file], &plain).unwrap();
    let (train, eval) = (shown(&packed.train, 5).concat(), shown(&packed.eval, 5).concat());
    assert!(text.starts_with(&train) && train.len() > 780, "{}", train.len());
    assert!(eval.starts_with(' ') && text[train.len()..].contains(&eval) && eval.len() > 80, "{eval}");
    // A share too small for one sequence grows.
    let file = written(folder.path(), "short.txt", "abcde fghij klmno pqrst");
    let packed = letters(&[file], &DataConfig { eval_fraction: 0.0, ..plain }).unwrap();
    assert_eq!(shown(&packed.eval, 5), [" pqrs"]);
}

#[test]
fn what_is_wrong_with_data_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| written(folder.path(), name, text);
    let stories = write("stories.jsonl", &jsonl(&["abcdef", "ghijkl"]));
    let check = |files: &[PathBuf], cfg: &DataConfig, expected: &[&str]| {
        let error = letters(files, cfg).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error}");
        }
    };
    check(
        &[write("e.txt", ""), write("e.jsonl", "\n"), write("e.csv", "")],
        &cfg(),
        &["the data is empty", "e.csv"],
    );
    check(&[write("h.csv", "text\n")], &cfg(), &["the data is empty"]);
    check(&[folder.path().join("none.txt")], &cfg(), &["none.txt` does not exist"]);
    check(&[write("x.zip", "")], &cfg(), &["is none of .parquet"]);
    check(
        &[fixture("text.parquet")],
        &DataConfig { column: "story".to_owned(), ..cfg() },
        &["has no column `story` (data.column); it has: id, when, where, text"],
    );
    check(
        &[write("c.csv", "a,b\n1,2\n")],
        &cfg(),
        &["no column `tokens`, `input_ids`, `text` or `problem`", "it has: a, b"],
    );
    check(
        &[fixture("text.parquet")],
        &DataConfig { column: "when".to_owned(), ..cfg() },
        &["column `when`", "holds Timestamp(Millisecond, None); expected strings"],
    );
    check(&[fixture("tokens_u16.parquet")], &cfg(), &["column `input_ids`", "lists of UInt16, too narrow"]);
    check(&[write("bad.parquet", "PAR0")], &cfg(), &["cannot read", "bad.parquet"]);
    check(&[stories.clone(), fixture("tokens_i32.parquet")], &cfg(), &["holds text and", "holds tokens"]);
    check(&[write("t.csv", "tokens\nx y\n\"[1,1,1,1,1]\"\n")], &cfg(), &["row 0", "`x y` is not a list"]);
    check(
        &[write("ex.jsonl", &jsonl(&["abcdef", "gh!", "ijklmno"]))],
        &cfg(),
        &["line 2: the tokenizer fails: it dislikes"],
    );
    check(
        &[write("few.jsonl", &jsonl(&["ab", "c", "d"]))],
        &cfg(),
        &[
            "the held-out part of the data (2 documents, 2 tokens) does not fill one sequence of data.context_size = 5",
        ],
    );
    check(
        &[write("few2.jsonl", &jsonl(&["a", "c", "defgh"]))],
        &cfg(),
        &["the training part", "(2 documents, 2 tokens)"],
    );
    check(
        std::slice::from_ref(&stories),
        &DataConfig { disable_concat_sequences: true, context_size: 9, ..cfg() },
        &["are dropped"],
    );
    check(
        std::slice::from_ref(&stories),
        &DataConfig { context_size: 1, ..cfg() },
        &["data.context_size is 1"],
    );
    check(
        std::slice::from_ref(&stories),
        &DataConfig { eval_fraction: 1.0, ..cfg() },
        &["data.eval_fraction is 1"],
    );
    let error = pack(std::slice::from_ref(&stories), &cfg(), 9, None, 99).unwrap_err().to_string();
    assert!(error.contains("stories.jsonl holds text, and the model has no tokenizer"), "{error}");
    let error = pack(&[stories], &cfg(), 9, Some(&Letters::default()), 104).unwrap_err().to_string();
    assert!(
        error.contains("line 2: token 104 at position 1 is outside the model's vocabulary of 104 (0 to 103)"),
        "{error}"
    );

    let tokens = |cfg: &DataConfig, text: &str| {
        let file = write("t.jsonl", text);
        pack(&[file], cfg, 9, None, 50).unwrap_err().to_string()
    };
    let two = DataConfig { context_size: 2, ..cfg() };
    let error = tokens(&two, "{\"tokens\": [1,2]}\n{\"tokens\": [3]}\n");
    assert!(
        error.contains("t.jsonl, line 2: the row has 1 tokens, fewer than data.context_size = 2"),
        "{error}"
    );
    let error = tokens(&two, "{\"tokens\": [1,-2]}\n{\"tokens\": [3,4]}\n");
    assert!(error.contains("line 1: token -2 at position 1 is outside"), "{error}");
    assert_eq!(tokens(&two, "{\"tokens\": [1,2]}\n"), DataError::OneRow.to_string());
    let error = pack(&[fixture("tokens_i32.parquet")], &cfg(), 9, None, 300).unwrap_err().to_string();
    assert!(error.contains("row 6 (counted from 0): token 600"), "{error}");
}

#[test]
fn folder_is_one_data_set() {
    let folder = tempfile::tempdir().unwrap();
    written(folder.path(), "b.jsonl", &jsonl(&["ghij", "klmn"]));
    written(folder.path(), "a.txt", "abcdef");
    let packed = letters(&resolve(folder.path()).unwrap(), &cfg()).unwrap();
    assert_eq!(shown(&packed.train, 5), ["^abcd", "^ef^g"]);
    assert_eq!(shown(&packed.eval, 5), ["^klmn"]);
}
