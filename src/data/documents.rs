//! One view of all data files: so many documents in a row, of which any stretch can be read.
//!
//! Files are read one after the other and in pieces; nothing here holds more than one piece (for a `.csv`
//! file: its column).

use super::{At, DataError, Place, files::Format, lines, tables};
use std::{
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
};
/// One document.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    pub(crate) at: At,
    pub(crate) content: Content,
}

/// What a document holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Text(String),
    /// As in the file, so that nonsense can be shown.
    Tokens(Vec<i64>),
}

/// Whether data still has to be tokenised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Tokens,
}

/// The column that is read, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// Receives documents a piece at a time; may break off.
pub(crate) type Sink<'a> = dyn FnMut(Vec<Document>) -> Result<ControlFlow<()>, DataError> + 'a;

/// The same of several files: takes the file too.
pub(crate) type FileSink<'a> = dyn FnMut(&Path, Vec<Document>) -> Result<ControlFlow<()>, DataError> + 'a;

/// All documents of a data set.
#[derive(Debug)]
pub(crate) struct Documents {
    files: Vec<DataFile>,
    /// What all of them hold.
    pub(crate) kind: Kind,
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    format: Format,
    column: Column,
    documents: usize,
}

impl Documents {
    /// Looks through the files: finds the column and counts documents.
    pub(crate) fn open(paths: &[PathBuf], column: &str) -> Result<Self, DataError> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            if !path.exists() {
                return Err(DataError::NotFound(path.clone()));
            }
            let format = Format::of(path).ok_or_else(|| DataError::UnknownFormat(path.clone()))?;
            let found = match format {
                Format::Txt => lines::survey_txt(path)?,
                Format::Jsonl => lines::survey_jsonl(path, column)?,
                Format::Parquet => tables::survey_parquet(path, column)?,
                Format::Csv => tables::survey_csv(path, column)?,
            };
            // A file without documents has no say in what the data is.
            if let Some((column, documents)) = found {
                files.push(DataFile { path: path.clone(), format, column, documents });
            }
        }
        let first_of = |kind| files.iter().find(|file| file.column.kind == kind);
        let kind = match (first_of(Kind::Text), first_of(Kind::Tokens)) {
            (None, None) => return Err(DataError::Empty { files: paths.to_vec() }),
            (Some(text), Some(tokens)) => {
                return Err(DataError::MixedKinds { text: text.path.clone(), tokens: tokens.path.clone() });
            }
            (Some(_), None) => Kind::Text,
            (None, Some(_)) => Kind::Tokens,
        };
        Ok(Self { files, kind })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.iter().map(|file| file.documents).sum()
    }

    pub(crate) fn first_file(&self) -> &Path {
        &self.files.first().expect("invariant: data without documents is an error").path
    }

    /// Reads the documents of a range in order, until all are read or the sink breaks off.
    pub(crate) fn read(&self, range: Range<usize>, each: &mut FileSink<'_>) -> Result<(), DataError> {
        let mut start_of_file = 0;
        for file in &self.files {
            let end_of_file = start_of_file + file.documents;
            let from = range.start.max(start_of_file);
            let to = range.end.min(end_of_file);
            if from < to {
                let rows = from - start_of_file..to - start_of_file;
                let mut sink = |documents: Vec<Document>| each(&file.path, documents);
                let flow = match file.format {
                    Format::Txt => lines::read_txt(&file.path, rows, &mut sink)?,
                    Format::Jsonl => lines::read_jsonl(&file.path, &file.column, rows, &mut sink)?,
                    Format::Parquet => tables::read_parquet(&file.path, &file.column, rows, &mut sink)?,
                    Format::Csv => tables::read_csv(&file.path, &file.column, rows, &mut sink)?,
                };
                if flow.is_break() {
                    return Ok(());
                }
            }
            start_of_file = end_of_file;
        }
        Ok(())
    }
}

/// Chooses the column: the one asked for, or the first that is usual, in the order that SAELens looks for them.
pub(crate) fn choose_column(path: &Path, wanted: &str, columns: Vec<String>) -> Result<String, DataError> {
    const USUAL: [&str; 4] = ["tokens", "input_ids", "text", "problem"];
    let found = if wanted.is_empty() {
        USUAL.into_iter().find(|usual| columns.iter().any(|column| column == usual))
    } else {
        Some(wanted).filter(|wanted| columns.iter().any(|column| column == wanted))
    };
    match found {
        Some(column) => Ok(column.to_owned()),
        None => {
            let wanted = if wanted.is_empty() {
                "`tokens`, `input_ids`, `text` or `problem` (data.column names another)".to_owned()
            } else {
                format!("`{wanted}` (data.column)")
            };
            Err(DataError::MissingColumn { file: path.to_owned(), wanted, columns })
        }
    }
}

/// Collects documents into pieces small enough to hold and large enough to share out among threads.
pub(crate) struct Pieces<'a, 'b> {
    sink: &'a mut Sink<'b>,
    piece: Vec<Document>,
    size: usize,
}

impl<'a, 'b> Pieces<'a, 'b> {
    const DOCUMENTS: usize = 512;
    /// Bytes of text or of tokens.
    const SIZE: usize = 512 << 10;

    pub(crate) fn new(sink: &'a mut Sink<'b>) -> Self {
        Self { sink, piece: Vec::new(), size: 0 }
    }

    pub(crate) fn push(&mut self, document: Document) -> Result<ControlFlow<()>, DataError> {
        self.size += match &document.content {
            Content::Text(text) => text.len(),
            Content::Tokens(tokens) => 4 * tokens.len(),
        };
        self.piece.push(document);
        if self.piece.len() < Self::DOCUMENTS && self.size < Self::SIZE {
            return Ok(ControlFlow::Continue(()));
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<ControlFlow<()>, DataError> {
        self.size = 0;
        if self.piece.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        (self.sink)(std::mem::take(&mut self.piece))
    }
}

pub(crate) fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> DataError {
    let file = path.to_owned();
    move |error| DataError::Read { file: file.clone(), reason: error.to_string() }
}

pub(crate) fn bad_document(path: &Path, at: At, reason: impl Into<String>) -> DataError {
    DataError::Document { place: Place { file: path.to_owned(), at }, reason: reason.into() }
}
