//! Which files of a repository make a model or a training split, and which of them are missing.

use super::{HubError, HubName};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

pub(crate) const SAFETENSORS: &str = "model.safetensors";
pub(crate) const SHARD_INDEX: &str = "model.safetensors.index.json";
pub(crate) const PICKLE: &str = "pytorch_model.bin";

/// What a folder lacks to be loaded as a model.
pub(crate) fn missing_of_model(folder: &Path) -> Vec<String> {
    let has = |file: &str| folder.join(file).is_file();
    let mut missing = Vec::new();
    if !has("config.json") {
        missing.push("config.json".to_owned());
    }
    if has(SAFETENSORS) {
        return missing;
    }
    if !has(SHARD_INDEX) {
        if !has(PICKLE) {
            missing.push("weights".to_owned());
        }
        return missing;
    }
    match shards_of(&folder.join(SHARD_INDEX)) {
        Ok(shards) => missing.extend(shards.into_iter().filter(|shard| !has(shard))),
        Err(_unreadable) => missing.push(SHARD_INDEX.to_owned()),
    }
    missing
}

/// The weight files that an index names.
pub(crate) fn shards_of(index: &Path) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read_to_string(index).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(index.weight_map.into_values().collect())
}

/// Parts that names of the form `…-00002-of-00004…` promise and that are not there.
pub(crate) fn missing_parts(files: &[String]) -> Vec<String> {
    let mut seen: BTreeMap<(String, usize), BTreeSet<usize>> = BTreeMap::new();
    for file in files {
        if let Some((prefix, part, of)) = part_of(file) {
            seen.entry((prefix, of)).or_default().insert(part);
        }
    }
    seen.iter()
        .flat_map(|((prefix, of), parts)| {
            let missing = (0..*of).filter(|part| !parts.contains(part));
            missing.map(move |part| format!("{prefix}-{part:05}-of-{of:05}"))
        })
        .collect()
}

fn part_of(file: &str) -> Option<(String, usize, usize)> {
    let (before, after) = file.split_once("-of-")?;
    let (prefix, part) = before.rsplit_once('-')?;
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    Some((prefix.to_owned(), part.parse().ok()?, after[..digits].parse().ok()?))
}

/// The parquet files of the training split among the files of a repository.
///
/// As in Python's `datasets`, a split is a word in a file's name or folder; files of a repository that names
/// no split are all training data. Files in folders `a/…` and `b/…` (or `a/train/…` and `b/train/…`) are two
/// configurations, and only one can be meant.
pub(crate) fn train_files(name: &str, hub_name: &HubName, paths: &[&str]) -> Result<Vec<String>, HubError> {
    let chosen: Vec<(&str, &str)> = paths
        .iter()
        .filter(|path| path.ends_with(".parquet"))
        .filter_map(|path| match &hub_name.folder {
            None => Some((*path, *path)),
            Some(folder) if path == folder => Some((*path, path.rsplit('/').next().unwrap_or(path))),
            Some(folder) => Some((*path, path.strip_prefix(folder.as_str())?.strip_prefix('/')?)),
        })
        .collect();
    let of_split = |words: &[&str]| -> Vec<(&str, &str)> {
        chosen.iter().copied().filter(|(_, inner)| has_word(inner, words)).collect()
    };
    let mut train = of_split(&["train", "training"]);
    if train.is_empty()
        && of_split(&["test", "testing", "eval", "validation", "valid", "val", "dev"]).is_empty()
    {
        train = chosen;
    }
    let configurations: BTreeSet<&str> = train.iter().map(|(_, inner)| configuration(inner)).collect();
    if configurations.len() > 1 {
        // The hub shows `default` to those who ask for no other.
        if configurations.contains("default") {
            train.retain(|(_, inner)| configuration(inner) == "default");
        } else {
            return Err(HubError::SeveralConfigurations {
                name: name.to_owned(),
                repo: hub_name.repo.clone(),
                configurations: configurations.into_iter().map(str::to_owned).collect(),
            });
        }
    }
    Ok(train.into_iter().map(|(path, _)| path.to_owned()).collect())
}

/// The folder that makes a configuration: the first one, unless it only names the split or is `data`.
fn configuration(path: &str) -> &str {
    match path.split_once('/') {
        Some((folder, _)) if folder != "data" && !has_word(folder, &["train", "training"]) => folder,
        _ => "",
    }
}

fn has_word(path: &str, words: &[&str]) -> bool {
    path.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| words.iter().any(|wanted| word.eq_ignore_ascii_case(wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, paths: &[&str], expected: Result<&[&str], &[&str]>) {
        let found = train_files(name, &HubName::parse(name).unwrap(), paths);
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name} {paths:?}"),
            (Err(HubError::SeveralConfigurations { configurations, .. }), Err(expected)) => {
                assert_eq!(configurations, expected);
            }
            (found, _) => panic!("{name}: {found:?}"),
        }
    }

    #[test]
    fn training_split_is_recognised_by_its_name() {
        check(
            "o/n",
            &[
                "README.md",
                "data/train-00000-of-00002-ab.parquet",
                "data/train-00001-of-00002-cd.parquet",
                "data/validation-00000-of-00001.parquet",
            ],
            Ok(&["data/train-00000-of-00002-ab.parquet", "data/train-00001-of-00002-cd.parquet"]),
        );
        check(
            "o/n",
            &["default/partial-train/0000.parquet", "default/test/0000.parquet"],
            Ok(&["default/partial-train/0000.parquet"]),
        );
        check(
            "o/n",
            &["train/a.parquet", "train/b.parquet", "test/a.parquet"],
            Ok(&["train/a.parquet", "train/b.parquet"]),
        );
        check("o/n", &["part1.parquet", "part2.parquet"], Ok(&["part1.parquet", "part2.parquet"]));
        check("o/n", &["test.parquet"], Ok(&[]));
        check("o/n", &["strained.parquet", "test.parquet"], Ok(&[]));
        check("o/n", &["train.csv"], Ok(&[]));
    }

    #[test]
    fn one_configuration_is_chosen() {
        let paths = ["large/train/0.parquet", "small/train/0.parquet", "small/test/0.parquet"];
        check("o/n", &paths, Err(&["large", "small"]));
        check("o/n/small", &paths, Ok(&["small/train/0.parquet"]));
        check("o/n/small/test/0.parquet", &paths, Ok(&["small/test/0.parquet"]));
        check("o/n/large/train/0.parquet", &paths, Ok(&["large/train/0.parquet"]));
        check("o/n/sma", &paths, Ok(&[]));
        check("o/n", &["default/train/0.parquet", "x/train/0.parquet"], Ok(&["default/train/0.parquet"]));
    }

    #[test]
    fn missing_parts_are_named() {
        let files = [
            "data/train-00000-of-00003-aa.parquet".to_owned(),
            "data/train-00002-of-00003-bb.parquet".to_owned(),
        ];
        assert_eq!(missing_parts(&files), ["data/train-00001-of-00003"]);
        assert!(missing_parts(&["x.parquet".to_owned(), "a-of-b.parquet".to_owned()]).is_empty());
    }
}
