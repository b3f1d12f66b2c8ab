//! Which files of a repository are wanted, and the two functions the rest of the program calls.

use super::{
    HubError, HubName, HubOptions, RepoKind,
    cache::{RepoCache, files_in},
    remote::{Listing, Remote, RemoteFile},
    selection::{PICKLE, SAFETENSORS, SHARD_INDEX, missing_of_model, missing_parts, shards_of, train_files},
    transfer::Transfer,
};
use std::path::PathBuf;

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
