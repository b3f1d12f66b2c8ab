//! `.parquet` and `.csv` files, read through polars.

use super::{
    At, DataError,
    documents::{Column, Content, Document, Kind, Pieces, Sink, bad_document, choose_column, unreadable},
    lines::token_list,
};
use polars::prelude::{
    ArrowDataType, CsvReadOptions, DataFrame, DataType, ParquetReader, PolarsError, SerReader, Series,
};
use std::{
    fs::File,
    ops::{ControlFlow, Range},
    path::Path,
    sync::Arc,
};

type Survey = Option<(Column, usize)>;

/// Rows that are at least read at a time; a row group is never divided, because every part of it would be
/// decoded from its start.
const ROWS_AT_A_TIME: usize = 2048;

/// Finds the column of a `.parquet` file and counts its rows, from the footer alone.
pub(crate) fn survey_parquet(path: &Path, wanted: &str) -> Result<Survey, DataError> {
    let fail = polars_error(path);
    let mut reader = ParquetReader::new(File::open(path).map_err(unreadable(path))?);
    let columns = reader.schema().map_err(&fail)?.iter_names().map(|name| name.to_string()).collect();
    let rows = reader.num_rows().map_err(&fail)?;
    if rows == 0 {
        return Ok(None);
    }
    let name = choose_column(path, wanted, columns)?;
    let schema = reader.schema().map_err(&fail)?;
    let dtype = schema.get(&name).map(|field| field.dtype()).expect("invariant: the column was found in it");
    let kind = kind_of(dtype).map_err(|found| DataError::ColumnType {
        file: path.to_owned(),
        column: name.clone(),
        found,
    })?;
    Ok(Some((Column { name, kind }, rows)))
}

/// What a column of a `.parquet` file holds, told by its type there: polars knows fewer types than the format.
fn kind_of(dtype: &ArrowDataType) -> Result<Kind, String> {
    use ArrowDataType as Type;
    match dtype {
        Type::Utf8 | Type::LargeUtf8 | Type::Utf8View => Ok(Kind::Text),
        Type::List(item) | Type::LargeList(item) => match item.dtype() {
            Type::Int32 | Type::Int64 | Type::UInt32 | Type::UInt64 => Ok(Kind::Tokens),
            Type::Int8 | Type::UInt8 | Type::Int16 | Type::UInt16 => {
                Err(format!("lists of {:?}, too narrow to be read; cast them to 32 bits", item.dtype()))
            }
            other => Err(format!("lists of {other:?}")),
        },
        other => Err(format!("{other:?}")),
    }
}

pub(crate) fn read_parquet(
    path: &Path,
    column: &Column,
    rows: Range<usize>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, DataError> {
    let fail = polars_error(path);
    let open = || File::open(path).map_err(unreadable(path)).map(ParquetReader::new);
    let metadata = open()?.get_metadata().map_err(&fail)?.clone();
    let mut pieces = Pieces::new(sink);
    let mut start = 0;
    let mut groups = metadata.row_groups.iter().map(|group| group.num_rows()).peekable();
    while let Some(first) = groups.next() {
        let mut end = start + first;
        // Groups are taken together while they are small and of the same side of the range's start.
        while end > rows.start && end - start < ROWS_AT_A_TIME && end < rows.end {
            match groups.next() {
                Some(more) => end += more,
                None => break,
            }
        }
        let (from, to) = (start.max(rows.start), end.min(rows.end));
        if from < to {
            let mut reader = open()?;
            reader.set_metadata(metadata.clone());
            let frame = reader
                .with_columns(Some(vec![column.name.clone()]))
                .with_slice(Some((from, to - from)))
                .finish()
                .map_err(&fail)?;
            let series = column_of(path, &column.name, frame)?;
            if push_rows(path, column, &series, 0..series.len(), from, &mut pieces)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        start = end;
        if start >= rows.end {
            break;
        }
    }
    pieces.flush()
}

/// Finds the column of a `.csv` file and counts its rows.
pub(crate) fn survey_csv(path: &Path, wanted: &str) -> Result<Survey, DataError> {
    if path.metadata().map_err(unreadable(path))?.len() == 0 {
        return Ok(None);
    }
    let header = csv_frame(path, None, Some(1))?;
    let columns = header.get_column_names().into_iter().map(|name| name.to_string()).collect();
    let name = choose_column(path, wanted, columns)?;
    let rows = csv_frame(path, Some(&name), None)?.height();
    // Lists have no form of their own in .csv files; these two names say that the text is one.
    let kind = if name == "tokens" || name == "input_ids" { Kind::Tokens } else { Kind::Text };
    Ok((rows > 0).then_some((Column { name, kind }, rows)))
}

pub(crate) fn read_csv(
    path: &Path,
    column: &Column,
    rows: Range<usize>,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>, DataError> {
    let mut pieces = Pieces::new(sink);
    let series = column_of(path, &column.name, csv_frame(path, Some(&column.name), None)?)?;
    if push_rows(path, column, &series, rows, 0, &mut pieces)?.is_break() {
        return Ok(ControlFlow::Break(()));
    }
    pieces.flush()
}

/// Reads a `.csv` file with every column as text: a story that reads `1984` is a story.
fn csv_frame(path: &Path, column: Option<&str>, n_rows: Option<usize>) -> Result<DataFrame, DataError> {
    CsvReadOptions::default()
        .with_has_header(true)
        .with_infer_schema_length(Some(0))
        .with_n_rows(n_rows)
        .with_columns(column.map(|name| Arc::from([name.into()])))
        .try_into_reader_with_file_path(Some(path.to_owned()))
        .and_then(SerReader::finish)
        .map_err(polars_error(path))
}

fn column_of(path: &Path, name: &str, frame: DataFrame) -> Result<Series, DataError> {
    let column = frame.column(name).map_err(polars_error(path))?;
    Ok(column.as_materialized_series().clone())
}

/// Hands on rows of a column. Row `i` of the series is row `first_row + i` of the file.
fn push_rows(
    path: &Path,
    column: &Column,
    series: &Series,
    rows: Range<usize>,
    first_row: usize,
    pieces: &mut Pieces<'_, '_>,
) -> Result<ControlFlow<()>, DataError> {
    let fail = polars_error(path);
    let texts = if *series.dtype() == DataType::String { Some(series.str().map_err(&fail)?) } else { None };
    let wide = DataType::List(Box::new(DataType::Int64));
    let lists = if texts.is_none() { Some(series.cast(&wide).map_err(&fail)?) } else { None };
    let lists = lists.as_ref().map(Series::list).transpose().map_err(&fail)?;
    for row in rows {
        let at = At::Row((first_row + row) as u64);
        let content = match (texts, lists, column.kind) {
            // No value is no text.
            (Some(texts), _, Kind::Text) => Content::Text(texts.get(row).unwrap_or("").to_owned()),
            (Some(texts), _, Kind::Tokens) => {
                let text = texts.get(row).unwrap_or("");
                let values: Vec<serde_json::Value> = serde_json::from_str(text).map_err(|_not_a_list| {
                    bad_document(path, at, format!("`{}` is not a list like [1, 2, 3]", shortened(text)))
                })?;
                Content::Tokens(token_list(&values).map_err(|reason| bad_document(path, at, reason))?)
            }
            (None, Some(lists), _) => {
                let Some(list) = lists.get_as_series(row) else {
                    return Err(bad_document(path, at, "no value where a list of tokens should be"));
                };
                let tokens = list.i64().map_err(&fail)?;
                if tokens.null_count() > 0 {
                    return Err(bad_document(path, at, "a token without a value"));
                }
                Content::Tokens(tokens.into_no_null_iter().collect())
            }
            (None, None, _) => unreachable!("a column is text or a list"),
        };
        if pieces.push(Document { at, content })?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}

fn polars_error(path: &Path) -> impl Fn(PolarsError) -> DataError {
    let file = path.to_owned();
    move |error| DataError::Read { file: file.clone(), reason: error.to_string() }
}
