//! The table files of a run: `trials.parquet`, `trials.csv`, `curves.parquet`, `frontier.csv`.

use super::{AxisEffect, Frontier, RunData, axis_effects, frames, frontiers};
use crate::failpoint;
use polars::prelude::{CsvWriter, DataFrame, ParquetWriter, PolarsError, SerWriter};
use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// What the report needs beyond [`RunData`], computed once.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    /// The frontiers of sparsity and fidelity.
    pub frontiers: Vec<Frontier>,
    /// The effect of every axis.
    pub effects: Vec<AxisEffect>,
}

impl Tables {
    /// Computes them; writes nothing.
    pub fn of(run: &RunData) -> Self {
        let frontiers = frontiers(run);
        let effects = axis_effects(run, &frontiers);
        Self { frontiers, effects }
    }
}

/// A table that cannot be made or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The frame could not be built or encoded.
    #[error("table `{file}`: {source}")]
    Frame {
        /// Which table.
        file: String,
        /// Why.
        source: PolarsError,
    },
    /// The file could not be written.
    #[error("cannot write `{path}`: {source}", path = path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Writes the four tables into `dir`, which is made when missing. A reader sees each file whole, the old
/// or the new.
///
/// # Errors
/// When a table cannot be built or a file cannot be written.
pub fn write_tables(run: &RunData, dir: &Path) -> Result<Tables, TableError> {
    std::fs::create_dir_all(dir).map_err(|source| TableError::Write { path: dir.to_owned(), source })?;
    let tables = Tables::of(run);
    let frame = |file: &str, made: Result<DataFrame, PolarsError>| {
        made.map_err(|source| TableError::Frame { file: file.to_owned(), source })
    };
    let trials = frame("trials", frames::trials_frame(run))?;
    let curves = frame("curves", frames::curves_frame(run))?;
    let frontier = frame("frontier", frames::frontier_frame(run, &tables.frontiers))?;
    write(dir, "trials.parquet", trials.clone(), write_parquet)?;
    write(dir, "trials.csv", trials, write_csv)?;
    write(dir, "curves.parquet", curves, write_parquet)?;
    write(dir, "frontier.csv", frontier, write_csv)?;
    Ok(tables)
}

type Encode = fn(&mut dyn Write, &mut DataFrame) -> Result<(), PolarsError>;

fn write_csv(out: &mut dyn Write, frame: &mut DataFrame) -> Result<(), PolarsError> {
    CsvWriter::new(out).finish(frame)
}

fn write_parquet(out: &mut dyn Write, frame: &mut DataFrame) -> Result<(), PolarsError> {
    ParquetWriter::new(out).finish(frame).map(|_bytes| ())
}

fn write(dir: &Path, file: &str, mut frame: DataFrame, encode: Encode) -> Result<(), TableError> {
    let path = dir.join(file);
    let io = |source| TableError::Write { path: path.clone(), source };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    // Temporary files are private by default; tables are as public as the user's umask allows.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temp = builder.tempfile_in(dir).map_err(io)?;
    let mut out = BufWriter::new(temp);
    encode(&mut out, &mut frame).map_err(|source| TableError::Frame { file: file.to_owned(), source })?;
    let temp = out.into_inner().map_err(|err| io(err.into_error()))?;
    temp.as_file().sync_all().map_err(io)?;
    failpoint::hit("table: written without its name");
    temp.persist(&path).map_err(|err| io(err.error))?;
    failpoint::hit("table: named");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::samples;
    use polars::prelude::{DataType, ParquetReader, SerReader};
    use serde_json::json;

    fn read(dir: &Path, file: &str) -> DataFrame {
        ParquetReader::new(std::fs::File::open(dir.join(file)).unwrap()).finish().unwrap()
    }

    #[test]
    fn parquet_and_csv_hold_the_same_trials() {
        let dir = tempfile::tempdir().unwrap();
        let run = samples::grid_run();
        write_tables(&run, dir.path()).unwrap();
        let frame = read(dir.path(), "trials.parquet");
        let csv = std::fs::read_to_string(dir.path().join("trials.csv")).unwrap();
        let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
        let names: Vec<String> = frame.get_column_names().iter().map(|name| name.to_string()).collect();
        assert_eq!(header, names);
        assert_eq!(frame.height(), run.trials.len());
        assert_eq!(csv.lines().count(), 1 + run.trials.len());
        let at = |name: &str| names.iter().position(|known| known == name).unwrap();
        assert_eq!((at("trial"), at("tokens_per_sec")), (0, names.len() - 1));
        assert!(at("train.seed") < at("l0") && at("train_loss") < at("attempts"));
        assert!(at("model.hook") < at("sae.d_sae") && at("sae.d_sae") < at("train.lr"));
    }

    #[test]
    fn settings_keep_their_types() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = samples::grid_run();
        run.trials[0].settings.insert("sae.k".to_owned(), json!(32));
        write_tables(&run, dir.path()).unwrap();
        let frame = read(dir.path(), "trials.parquet");
        let of = |name: &str| frame.column(name).unwrap().dtype().clone();
        assert_eq!(of("train.lr"), DataType::Float64);
        assert_eq!(of("sae.d_sae"), DataType::UInt64);
        assert_eq!(of("sae.apply_b_dec_to_input"), DataType::Boolean);
        assert_eq!(of("sae.architecture"), DataType::String);
        assert_eq!(frame.column("sae.k").unwrap().null_count(), run.trials.len() - 1);
    }

    #[test]
    fn numbers_that_are_not_finite_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = samples::grid_run();
        run.trials[0].metrics.insert("mse".to_owned(), f64::NAN);
        write_tables(&run, dir.path()).unwrap();
        let frame = read(dir.path(), "trials.parquet");
        assert!(frame.column("mse").unwrap().f64().unwrap().get(0).is_none());
        assert!(!std::fs::read_to_string(dir.path().join("trials.csv")).unwrap().contains(",NaN"));
    }

    #[test]
    fn the_same_run_gives_the_same_bytes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = samples::random_run(40);
        write_tables(&run, one.path()).unwrap();
        write_tables(&run, two.path()).unwrap();
        write_tables(&run, two.path()).unwrap();
        let mut files: Vec<_> =
            std::fs::read_dir(two.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["curves.parquet", "frontier.csv", "trials.csv", "trials.parquet"]);
        for file in files {
            let bytes = |dir: &Path| std::fs::read(dir.join(&file)).unwrap();
            assert!(bytes(one.path()) == bytes(two.path()), "{file:?}");
        }
    }

    #[test]
    fn a_run_without_trials_has_tables_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = samples::grid_run();
        run.trials.clear();
        write_tables(&run, dir.path()).unwrap();
        assert_eq!(read(dir.path(), "trials.parquet").height(), 0);
    }

    #[test]
    fn the_frontier_is_written_with_what_varies() {
        let dir = tempfile::tempdir().unwrap();
        let run = samples::grid_run();
        let tables = write_tables(&run, dir.path()).unwrap();
        let csv = std::fs::read_to_string(dir.path().join("frontier.csv")).unwrap();
        let points: usize = tables.frontiers.iter().map(|frontier| frontier.points.len()).sum();
        assert_eq!(csv.lines().count(), 1 + points);
        assert!(csv.starts_with("frontier,trial,l0,fidelity,sae.l1_coefficient,train.lr\nce_loss_score,"));
    }
}
