//! Which files of a repository are wanted, and the two functions the rest of the program calls.

use super::{
    HubError, HubName, HubOptions, RepoKind,
    cache::{RepoCache, files_in},
    remote::{Listing, Remote, RemoteFile},
    transfer::Transfer,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Watches downloads. `()` watches nothing.
pub trait Progress {
    /// A file begins, or begins anew when the server would not continue it.
    fn start(&mut self, file: &str, bytes: u64);
    /// That many more bytes of it are here.
    fn advance(&mut self, bytes: u64);
    /// It is complete.
    fn finish(&mut self);
}

impl Progress for () {
    fn start(&mut self, _file: &str, _bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}

/// Brings a language model (`org/name[@revision]`) into the cache and returns its folder: `config.json`,
/// tokenizer and weights, the weights as safetensors where there are any.
///
/// When the hub is out of reach, a complete copy in the cache serves instead.
///
/// # Errors
/// See [`HubError`].
pub fn fetch_model(
    name: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    let hub_name = HubName::parse(name)?;
    if hub_name.folder.is_some() {
        let reason = "a model is a whole repository, without a folder after it";
        return Err(HubError::BadName { name: name.to_owned(), reason });
    }
    let revision = hub_name.revision.as_deref().unwrap_or("main");
    let cache = RepoCache::new(options.cache_folder()?, RepoKind::Model, &hub_name.repo, revision);
    let cached = || {
        let folder = cache.known_snapshot().ok_or_else(|| vec!["everything".to_owned()])?;
        let missing = missing_of_model(&folder);
        if missing.is_empty() { Ok(folder) } else { Err(missing) }
    };
    let not_cached = |missing| HubError::NotCached {
        kind: RepoKind::Model,
        name: name.to_owned(),
        cache_dir: options.cache_dir.clone().unwrap_or_default(),
        missing,
    };
    if options.offline {
        return cached().map_err(not_cached);
    }
    let remote = Remote::new(options)?;
    let listing = match remote.listing(RepoKind::Model, &cache) {
        Ok(listing) => listing,
        Err(error) => return instead(error, cached()),
    };
    let transfer = Transfer {
        remote: &remote,
        kind: RepoKind::Model,
        cache: &cache,
        commit: &listing.commit,
        retry_wait: options.retry_wait,
    };
    let no_files = |wanted: &str| HubError::NoUsableFiles {
        kind: RepoKind::Model,
        name: name.to_owned(),
        wanted: wanted.to_owned(),
        found: listing.files.iter().map(|file| file.path.clone()).collect(),
    };
    let find = |path: &str| listing.files.iter().find(|file| file.path == path);
    let config = find("config.json").ok_or_else(|| no_files("config.json"))?;
    transfer.fetch(config, progress)?;
    for file in SMALL_FILES.into_iter().filter_map(find) {
        transfer.fetch(file, progress)?;
    }
    if find("tokenizer.json").is_none() {
        // Older repositories keep a BPE tokenizer in two files of its own.
        for file in ["vocab.json", "merges.txt"].into_iter().filter_map(find) {
            transfer.fetch(file, progress)?;
        }
    }
    if let Some(index) = find(SHARD_INDEX).filter(|_| find(SAFETENSORS).is_none()) {
        let index_path = transfer.fetch(index, progress)?;
        let shards = shards_of(&index_path).map_err(|reason| HubError::Protocol {
            url: format!("{}/{}", options.endpoint_url(), hub_name.repo),
            reason: format!("{SHARD_INDEX}: {reason}"),
        })?;
        for shard in shards {
            let file =
                find(&shard).ok_or_else(|| no_files(&format!("{shard}, which {SHARD_INDEX} names")))?;
            transfer.fetch(file, progress)?;
        }
    } else {
        let wanted = "weights that can be read (model.safetensors, its shards, or pytorch_model.bin)";
        let weights = find(SAFETENSORS).or_else(|| find(PICKLE)).ok_or_else(|| no_files(wanted))?;
        transfer.fetch(weights, progress)?;
    }
    cache.write_ref(&listing.commit)?;
    Ok(cache.snapshot(&listing.commit))
}

/// Brings the training split of a data set (`org/name[/configuration][@revision]`) into the cache and returns
/// its parquet files in order.
///
/// A data set without parquet files has them on the branch that the hub converts for it,
/// `refs/convert/parquet`; that one is used unless a revision was asked for.
///
/// # Errors
/// See [`HubError`].
pub fn fetch_dataset(
    name: &str,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<PathBuf>, HubError> {
    let hub_name = HubName::parse(name)?;
    let revisions: Vec<&str> = match &hub_name.revision {
        Some(revision) => vec![revision],
        None => vec!["main", "refs/convert/parquet"],
    };
    let root = options.cache_folder()?;
    let caches: Vec<RepoCache> = revisions
        .iter()
        .map(|revision| RepoCache::new(root.clone(), RepoKind::Dataset, &hub_name.repo, revision))
        .collect();
    if options.offline {
        return cached_dataset(name, &hub_name, &caches)?.map_err(|missing| HubError::NotCached {
            kind: RepoKind::Dataset,
            name: name.to_owned(),
            cache_dir: root,
            missing,
        });
    }
    let remote = Remote::new(options)?;
    let mut found = Vec::new();
    for (i, cache) in caches.iter().enumerate() {
        let listing = match remote.listing(RepoKind::Dataset, cache) {
            Ok(listing) => listing,
            // The converted branch is a second chance; its absence is not what the user asked about.
            Err(HubError::NotFound { .. } | HubError::RevisionNotFound { .. }) if i > 0 => continue,
            Err(error) => return instead(error, cached_dataset(name, &hub_name, &caches)?),
        };
        let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
        let wanted = train_files(name, &hub_name, &paths)?;
        if !wanted.is_empty() {
            return fetch_files(&remote, cache, &listing, &wanted, options, progress);
        }
        if i == 0 {
            found = listing.files.into_iter().map(|file| file.path).collect();
        }
    }
    let wanted = match &hub_name.folder {
        Some(folder) => format!("parquet files of a training split in `{folder}`"),
        None => "parquet files of a training split, and the hub has not converted it".to_owned(),
    };
    Err(HubError::NoUsableFiles { kind: RepoKind::Dataset, name: name.to_owned(), wanted, found })
}

const SAFETENSORS: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";
const PICKLE: &str = "pytorch_model.bin";
/// Taken along when they exist.
const SMALL_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

fn fetch_files(
    remote: &Remote<'_>,
    cache: &RepoCache,
    listing: &Listing,
    wanted: &[String],
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<PathBuf>, HubError> {
    let transfer = Transfer {
        remote,
        kind: RepoKind::Dataset,
        cache,
        commit: &listing.commit,
        retry_wait: options.retry_wait,
    };
    let is_wanted = |file: &&RemoteFile| wanted.contains(&file.path);
    let mut paths = Vec::with_capacity(wanted.len());
    for file in listing.files.iter().filter(is_wanted) {
        paths.push(transfer.fetch(file, progress)?);
    }
    cache.write_ref(&listing.commit)?;
    Ok(paths)
}

/// The cached copy when it is complete and the hub is out of reach, else the error.
fn instead<T>(error: HubError, cached: Result<T, Vec<String>>) -> Result<T, HubError> {
    match cached {
        Ok(copy) if error.is_hub_out_of_reach() => {
            tracing::warn!("{error}; going on with the copy in the cache");
            Ok(copy)
        }
        _ => Err(error),
    }
}

/// What a folder lacks to be loaded as a model.
fn missing_of_model(folder: &Path) -> Vec<String> {
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
fn shards_of(index: &Path) -> Result<BTreeSet<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read_to_string(index).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(index.weight_map.into_values().collect())
}

type Cached<T> = Result<T, Vec<String>>;

/// The training files that the cache holds, or what is missing.
fn cached_dataset(
    name: &str,
    hub_name: &HubName,
    caches: &[RepoCache],
) -> Result<Cached<Vec<PathBuf>>, HubError> {
    for cache in caches {
        let Some(folder) = cache.known_snapshot() else { continue };
        let files = files_in(&folder);
        let paths: Vec<&str> = files.iter().map(String::as_str).collect();
        let wanted = train_files(name, hub_name, &paths)?;
        if wanted.is_empty() {
            continue;
        }
        let missing = missing_parts(&wanted);
        return Ok(if missing.is_empty() {
            Ok(wanted.iter().map(|file| folder.join(file)).collect())
        } else {
            Err(missing)
        });
    }
    Ok(Err(vec!["its parquet files".to_owned()]))
}

/// Parts that names of the form `…-00002-of-00004…` promise and that are not there.
fn missing_parts(files: &[String]) -> Vec<String> {
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
fn train_files(name: &str, hub_name: &HubName, paths: &[&str]) -> Result<Vec<String>, HubError> {
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
