//! Which files a data set consists of.

use super::DataError;
use std::path::{Path, PathBuf};

/// How a data file is read, told by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    Jsonl,
    Csv,
    Txt,
}

impl Format {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "jsonl" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "txt" => Some(Self::Txt),
            _ => None,
        }
    }
}

/// The data files that a path stands for: itself, or those directly inside a folder, sorted by name.
///
/// # Errors
/// When there is nothing at the path, or nothing that can be read.
pub fn resolve(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !path.exists() {
        return Err(DataError::NotFound(path.to_owned()));
    }
    if !path.is_dir() {
        return match Format::of(path) {
            Some(_) => Ok(vec![path.to_owned()]),
            None => Err(DataError::UnknownFormat(path.to_owned())),
        };
    }
    let unreadable =
        |error: std::io::Error| DataError::Read { file: path.to_owned(), reason: error.to_string() };
    let (mut files, mut subfolders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Hidden files are an editor's or an archiver's, never the user's data.
        if name.starts_with('.') {
            continue;
        }
        if entry.is_dir() {
            subfolders.push(name);
        } else if Format::of(&entry).is_some() {
            files.push(entry);
        }
    }
    files.sort();
    subfolders.sort();
    if files.is_empty() {
        return Err(DataError::EmptyFolder { folder: path.to_owned(), subfolders });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn folder_gives_its_data_files_sorted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.TXT", "README.md", ".hidden.txt", "c.parquet", "d.csv"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("test")).unwrap();
        fs::write(folder.path().join("test/x.txt"), "").unwrap();
        let names: Vec<_> =
            resolve(folder.path()).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.TXT", "b.jsonl", "c.parquet", "d.csv"]);
        assert_eq!(resolve(&folder.path().join("b.jsonl")).unwrap(), [folder.path().join("b.jsonl")]);
    }

    #[test]
    fn what_is_no_data_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: &Path| resolve(path).unwrap_err().to_string();
        assert!(error(&folder.path().join("none")).ends_with("does not exist"));
        fs::create_dir(folder.path().join("train")).unwrap();
        let text = error(folder.path());
        assert!(text.contains("holds no .parquet") && text.contains("not searched: train"), "{text}");
        fs::write(folder.path().join("x.zip"), "").unwrap();
        assert!(error(&folder.path().join("x.zip")).contains("is none of .parquet"));
    }
}
