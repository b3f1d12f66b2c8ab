//! `.txt` and `.jsonl` files, read line by line.

use super::{
    At, DataError,
    documents::{Column, Content, Document, Kind, Pieces, Sink, bad_document, choose_column, unreadable},
};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    ops::{ControlFlow, Range},
    path::Path,
};

/// What stands between two documents of a `.txt` file: the end-of-text token of the GPT tokenizers, as dumps of
/// many stories have it.
const END_OF_TEXT: &str = "<|endoftext|>";

type Survey = Option<(Column, usize)>;

/// Counts the documents of a `.txt` file.
pub(crate) fn survey_txt(path: &Path) -> Result<Survey, DataError> {
    let mut count = 0;
    let flow = walk_txt(path, &mut |_, _| {
        count += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    debug_assert!(flow.is_continue(), "counting never breaks off");
    Ok((count > 0).then(|| (Column { name: String::new(), kind: Kind::Text }, count)))
}

pub(crate) fn read_txt(
    path: &Path,
    rows: Range<usize>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, DataError> {
    let mut pieces = Pieces::new(sink);
    let mut idx = 0;
    let flow = walk_txt(path, &mut |line, text| {
        let flow = if rows.contains(&idx) {
            pieces.push(Document { at: At::Line(line), content: Content::Text(text) })?
        } else {
            ControlFlow::Continue(())
        };
        idx += 1;
        Ok(if idx >= rows.end { ControlFlow::Break(()) } else { flow })
    })?;
    // Breaking at the end of the range is no wish of the sink's.
    if flow.is_break() && idx < rows.end { Ok(flow) } else { pieces.flush() }
}

/// Calls back with every document and the line it starts on. A file without [`END_OF_TEXT`] is one document, as
/// it stands; around that mark, line ends are layout and are cut off. Blank documents do not count.
fn walk_txt(
    path: &Path,
    each: &mut dyn FnMut(u64, String) -> Result<ControlFlow<()>, DataError>,
) -> Result<ControlFlow<()>, DataError> {
    let mut text = String::new();
    let (mut starts_at, mut marks) = (1, 0);
    let mut reader = Lines::open(path)?;
    while let Some((number, line)) = reader.next()? {
        if text.trim().is_empty() {
            starts_at = number;
        }
        let mut rest = line;
        while let Some(at) = rest.find(END_OF_TEXT) {
            text.push_str(&rest[..at]);
            marks += 1;
            let document = text.trim_matches(['\n', '\r']);
            if !document.trim().is_empty() && each(starts_at, document.to_owned())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            text.clear();
            starts_at = number;
            rest = &rest[at + END_OF_TEXT.len()..];
        }
        text.push_str(rest);
    }
    let document = if marks > 0 { text.trim_matches(['\n', '\r']) } else { &text };
    if document.trim().is_empty() {
        return Ok(ControlFlow::Continue(()));
    }
    each(starts_at, document.to_owned())
}

/// Finds the column of a `.jsonl` file in its first line, and counts its documents.
pub(crate) fn survey_jsonl(path: &Path, wanted: &str) -> Result<Survey, DataError> {
    let mut reader = Lines::open(path)?;
    let (mut column, mut count) = (None, 0);
    while let Some((number, line)) = reader.next()? {
        if line.trim().is_empty() {
            continue;
        }
        if column.is_none() {
            let at = At::Line(number);
            let Value::Object(fields) = parse(path, at, line)? else {
                return Err(bad_document(path, at, "not a JSON object"));
            };
            let name = choose_column(path, wanted, fields.keys().cloned().collect())?;
            let kind = match &fields[&name] {
                Value::String(_) => Kind::Text,
                Value::Array(_) => Kind::Tokens,
                other => {
                    let found = format!("{} in its first line", kind_of(other));
                    return Err(DataError::ColumnType { file: path.to_owned(), column: name, found });
                }
            };
            column = Some(Column { name, kind });
        }
        count += 1;
    }
    Ok(column.map(|column| (column, count)))
}

pub(crate) fn read_jsonl(
    path: &Path,
    column: &Column,
    rows: Range<usize>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, DataError> {
    let mut pieces = Pieces::new(sink);
    let mut reader = Lines::open(path)?;
    let mut idx = 0;
    while let Some((number, line)) = reader.next()? {
        if line.trim().is_empty() {
            continue;
        }
        if idx >= rows.end {
            break;
        }
        idx += 1;
        if idx <= rows.start {
            continue;
        }
        let at = At::Line(number);
        let mut value = parse(path, at, line)?;
        let Some(field) = value.get_mut(&column.name) else {
            return Err(bad_document(path, at, format!("no field `{}`", column.name)));
        };
        let content = match (field.take(), column.kind) {
            (Value::String(text), Kind::Text) => Content::Text(text),
            // As in tables, no value is no text.
            (Value::Null, Kind::Text) => Content::Text(String::new()),
            (Value::Array(values), Kind::Tokens) => {
                Content::Tokens(token_list(&values).map_err(|reason| bad_document(path, at, reason))?)
            }
            (other, kind) => {
                let expected = if kind == Kind::Text { "a string" } else { "a list of whole numbers" };
                let reason = format!("`{}` is {}; expected {expected}", column.name, kind_of(&other));
                return Err(bad_document(path, at, reason));
            }
        };
        if pieces.push(Document { at, content })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    pieces.flush()
}

/// A JSON list as tokens.
pub(crate) fn token_list(values: &[Value]) -> Result<Vec<i64>, String> {
    let token = |value: &Value| value.as_i64().ok_or_else(|| format!("`{value}` is not a token number"));
    values.iter().map(token).collect()
}

fn parse(path: &Path, at: At, line: &str) -> Result<Value, DataError> {
    serde_json::from_str(line).map_err(|error| {
        // The line number that serde_json adds is the one inside this line, always 1.
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        bad_document(path, at, format!("{reason} at column {}", error.column()))
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The lines of a file with their numbers from 1, ends included, checked to be UTF-8.
struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    bytes: Vec<u8>,
    /// Lines given so far, which is the number of the last one.
    number: u64,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(unreadable(path))?;
        Ok(Self { path, reader: BufReader::with_capacity(1 << 20, file), bytes: Vec::new(), number: 0 })
    }

    fn next(&mut self) -> Result<Option<(u64, &str)>, DataError> {
        self.bytes.clear();
        if self.reader.read_until(b'\n', &mut self.bytes).map_err(unreadable(self.path))? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let text = std::str::from_utf8(&self.bytes)
            .map_err(|error| bad_document(self.path, At::Line(self.number), format!("not UTF-8: {error}")))?;
        // Some editors put a mark at the start of a file that is no part of its text.
        let text = if self.number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        Ok(Some((self.number, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn texts(read: impl FnOnce(&mut Sink<'_>) -> Result<ControlFlow<()>, DataError>) -> Vec<(u64, String)> {
        let mut out = Vec::new();
        let flow = read(&mut |documents| {
            out.extend(documents.into_iter().map(|document| match (document.at, document.content) {
                (At::Line(line), Content::Text(text)) => (line, text),
                other => panic!("{other:?}"),
            }));
            Ok(ControlFlow::Continue(()))
        });
        assert!(flow.unwrap().is_continue());
        out
    }

    #[test]
    fn txt_is_one_document_unless_it_is_marked() {
        let check = |text: &str, expected: &[(u64, &str)]| {
            let file = file(text);
            let n = survey_txt(file.path()).unwrap().map_or(0, |(_, n)| n);
            assert_eq!(n, expected.len(), "{text:?}");
            let all = texts(|sink| read_txt(file.path(), 0..n, sink));
            let all: Vec<_> = all.iter().map(|(line, text)| (*line, text.as_str())).collect();
            assert_eq!(all, expected, "{text:?}");
        };
        check("", &[]);
        check(" \n\n", &[]);
        check("a\n\nb\n", &[(1, "a\n\nb\n")]);
        check("\u{feff}a", &[(1, "a")]);
        check("a\nb\n<|endoftext|>\nc\n\nd\n<|endoftext|>\n", &[(1, "a\nb"), (4, "c\n\nd")]);
        check("<|endoftext|>a<|endoftext|><|endoftext|>\r\n b", &[(1, "a"), (2, " b")]);
    }

    #[test]
    fn stretches_are_read_and_readers_stop() {
        let marked = file("a<|endoftext|>b<|endoftext|>c<|endoftext|>d");
        let part = texts(|sink| read_txt(marked.path(), 1..3, sink));
        assert_eq!(part, [(1, "b".to_owned()), (1, "c".to_owned())]);
        let json = file("{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"text\": null}\n{\"text\": 7}\n");
        let (column, n) = survey_jsonl(json.path(), "").unwrap().unwrap();
        assert_eq!(n, 4);
        let part = texts(|sink| read_jsonl(json.path(), &column, 1..3, sink));
        assert_eq!(part, [(3, "b".to_owned()), (4, String::new())]);
        let error =
            read_jsonl(json.path(), &column, 3..4, &mut |_| Ok(ControlFlow::Continue(()))).unwrap_err();
        assert!(error.to_string().ends_with("line 5: `text` is a number; expected a string"), "{error}");
    }

    #[test]
    fn jsonl_errors_name_the_line() {
        let check = |text: &str, wanted: &str, expected: &str| {
            let file = file(text);
            let error = survey_jsonl(file.path(), wanted)
                .and_then(|found| {
                    let (column, n) = found.unwrap();
                    read_jsonl(file.path(), &column, 0..n, &mut |_| Ok(ControlFlow::Continue(())))
                })
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("{\"text\": \"a\"}\n{\"text\": \"b\"", "", "line 2: EOF while parsing an object at column");
        check("[1]\n", "", "line 1: not a JSON object");
        check("{\"text\": \"a\"}\n{\"body\": \"b\"}", "", "line 2: no field `text`");
        check("{\"body\": \"b\", \"id\": 1}", "", "has no column `tokens`, `input_ids`, `text` or `problem`");
        check("{\"body\": \"b\", \"id\": 1}", "txt", "no column `txt` (data.column); it has: body, id");
        check("{\"id\": 1}", "id", "column `id` of");
        check("{\"tokens\": [1, 2.5]}", "", "line 1: `2.5` is not a token number");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"fine\n\xff\xfe\n").unwrap();
        let error = survey_txt(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: not UTF-8"), "{error}");
    }
}
