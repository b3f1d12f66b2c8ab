//! The cache shared with Python's `huggingface_hub`: its layout on disk, and what is whole in it.
//!
//! ```text
//! <cache>/models--org--name/refs/main              the commit that `main` was
//!                           snapshots/<commit>/…   links to
//!                           blobs/<etag>           contents, named by their hash
//! <cache>/.locks/models--org--name/<etag>.lock     who writes that blob
//! ```
//! A ref is written last of all, so a snapshot that a ref leads to was once complete.

use super::{HubError, RepoKind};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// One repository of the cache.
pub(crate) struct RepoCache {
    /// The cache folder itself.
    root: PathBuf,
    folder_name: String,
    /// `<cache>/models--org--name`.
    folder: PathBuf,
    repo: Repo,
}

impl RepoCache {
    pub(crate) fn new(root: PathBuf, kind: RepoKind, repo: &str, revision: &str) -> Self {
        let repo_type = match kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(repo.to_owned(), repo_type, revision.to_owned());
        let folder_name = repo.folder_name();
        Self { folder: root.join(&folder_name), folder_name, root, repo }
    }

    pub(crate) fn repo(&self) -> &Repo {
        &self.repo
    }

    fn handle(&self) -> CacheRepo {
        Cache::new(self.root.clone()).repo(self.repo.clone())
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.handle().blob_path(etag)
    }

    /// Where Python's library locks a blob while it writes it.
    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.root.join(".locks").join(&self.folder_name).join(format!("{etag}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.handle().pointer_path(commit)
    }

    /// The snapshot that the revision was when it was last fetched.
    pub(crate) fn known_snapshot(&self) -> Option<PathBuf> {
        let revision = self.repo.revision();
        let commit = fs::read_to_string(self.folder.join("refs").join(revision))
            .map_or_else(|_missing| revision.to_owned(), |text| text.trim().to_owned());
        // A revision without a ref may itself be a commit.
        (is_commit(&commit)).then(|| self.snapshot(&commit)).filter(|folder| folder.is_dir())
    }

    /// Remembers which commit the revision is.
    pub(crate) fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        if self.repo.revision() == commit {
            return Ok(());
        }
        self.handle().create_ref(commit).map_err(HubError::cache("write a ref in", &self.folder))
    }

    /// Makes `snapshots/<commit>/<file>` lead to a blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let link = self.snapshot(commit).join(file);
        let parent = link.parent().expect("invariant: a file of a snapshot lies in it");
        fs::create_dir_all(parent).map_err(HubError::cache("create", parent))?;
        let up = "../".repeat(file.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&link).is_ok_and(|old| old == Path::new(&target)) {
            return Ok(link);
        }
        // Whatever else is there is stale, or a link into nothing.
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).map_err(HubError::cache("replace", &link))?;
        }
        match make_link(&target, &self.blob(etag), &link) {
            // Another process was quicker.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(link),
            done => done.map(|()| link.clone()).map_err(HubError::cache("link", &link)),
        }
    }
}

#[cfg(unix)]
fn make_link(target: &str, _blob: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a privilege on Windows; a second copy does not.
#[cfg(not(unix))]
fn make_link(_target: &str, blob: &Path, link: &Path) -> std::io::Result<()> {
    fs::copy(blob, link).map(|_bytes| ())
}

/// Whether a revision is a commit, which can neither move nor lead out of its folder.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// All files of a snapshot folder, as paths inside the repository, sorted.
pub(crate) fn files_in(snapshot: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![(snapshot.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // `metadata` follows the link: a link into nothing is no file.
            match path.metadata() {
                Ok(meta) if meta.is_dir() => folders.push((path, format!("{name}/"))),
                Ok(_) => files.push(name),
                Err(_) => {}
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn links_lead_to_blobs_and_are_renewed() {
        let root = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(root.path().to_owned(), RepoKind::Dataset, "o/n", "main");
        fs::create_dir_all(cache.blob("e1").parent().unwrap()).unwrap();
        fs::write(cache.blob("e1"), "one").unwrap();
        fs::write(cache.blob("e2"), "two").unwrap();
        for (etag, expected) in [("e1", "one"), ("e1", "one"), ("e2", "two")] {
            let link = cache.link(COMMIT, "data/train.parquet", etag).unwrap();
            assert_eq!(fs::read_to_string(link).unwrap(), expected);
        }
        assert_eq!(files_in(&cache.snapshot(COMMIT)), ["data/train.parquet"]);
        fs::remove_file(cache.blob("e2")).unwrap();
        assert!(files_in(&cache.snapshot(COMMIT)).is_empty());
    }

    #[test]
    fn snapshot_is_found_by_ref_and_by_commit() {
        let root = tempfile::tempdir().unwrap();
        let cache = |revision: &str| RepoCache::new(root.path().to_owned(), RepoKind::Model, "o/n", revision);
        assert_eq!(cache("main").known_snapshot(), None);
        let folder = cache("main").snapshot(COMMIT);
        assert!(folder.ends_with(format!("models--o--n/snapshots/{COMMIT}")));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(cache("main").known_snapshot(), None);
        assert_eq!(cache(COMMIT).known_snapshot(), Some(folder.clone()));
        cache("refs/convert/parquet").write_ref(COMMIT).unwrap();
        assert_eq!(cache("refs/convert/parquet").known_snapshot(), Some(folder));
    }
}
