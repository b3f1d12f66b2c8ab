//! Brings one file into the cache: resumed where it broke off, and never taken for whole before it is.

use super::{
    HubError, Progress, RepoKind,
    cache::RepoCache,
    remote::{Remote, RemoteFile},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// Connections that may bring nothing before a download is given up.
const FRUITLESS_ATTEMPTS: u32 = 5;
/// Connections in all: bounds a server that cuts every one after a few bytes.
const ATTEMPTS: u32 = 200;

/// One file on its way into the cache.
pub(crate) struct Transfer<'a> {
    pub(crate) remote: &'a Remote<'a>,
    pub(crate) kind: RepoKind,
    pub(crate) cache: &'a RepoCache,
    pub(crate) commit: &'a str,
    pub(crate) retry_wait: Duration,
}

impl Transfer<'_> {
    /// Returns the file's path in the snapshot, downloading it first if the cache lacks it.
    pub(crate) fn fetch(&self, file: &RemoteFile, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        let blob = self.cache.blob(&file.etag);
        if !is_whole(&blob, file.size) {
            let lock = lock(&self.cache.lock(&file.etag))?;
            // Another process may have brought it while this one waited for the lock.
            if !is_whole(&blob, file.size) {
                self.download(file, &blob, progress)?;
            }
            drop(lock);
        }
        self.cache.link(self.commit, &file.path, &file.etag)
    }

    fn download(&self, file: &RemoteFile, blob: &Path, progress: &mut dyn Progress) -> Result<(), HubError> {
        let folder = blob.parent().expect("invariant: a blob lies in a folder");
        fs::create_dir_all(folder).map_err(HubError::cache("create", folder))?;
        let partial = folder.join(format!("{}.incomplete", file.etag));
        let mut sink = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&partial)
            .map_err(HubError::cache("open", &partial))?;
        let mut got = sink.seek(SeekFrom::End(0)).map_err(HubError::cache("read", &partial))?;
        progress.start(&file.path, file.size);
        progress.advance(got.min(file.size));
        let (mut attempts, mut fruitless, mut wait) = (0, 0, self.retry_wait);
        while got != file.size {
            let before = got;
            let failure = self.attempt(file, &mut sink, &partial, &mut got, progress)?;
            attempts += 1;
            if got == file.size {
                break;
            }
            (fruitless, wait) = if got > before { (0, self.retry_wait) } else { (fruitless + 1, wait * 2) };
            let cause = failure.unwrap_or_else(|| "the connection was closed early".to_owned());
            tracing::debug!(file = file.path, got, expected = file.size, cause, "a download broke off");
            if fruitless == FRUITLESS_ATTEMPTS || attempts == ATTEMPTS {
                let file_path = file.path.clone();
                return Err(HubError::Incomplete {
                    file: file_path,
                    got,
                    expected: file.size,
                    attempts,
                    cause,
                });
            }
            std::thread::sleep(wait);
        }
        sink.sync_all().map_err(HubError::cache("write", &partial))?;
        fs::rename(&partial, blob).map_err(HubError::cache("rename", &partial))?;
        progress.finish();
        Ok(())
    }

    /// One connection. `Ok(Some(cause))` is a failure that another attempt may mend.
    fn attempt(
        &self,
        file: &RemoteFile,
        sink: &mut File,
        partial: &Path,
        got: &mut u64,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>, HubError> {
        if *got > file.size {
            // Longer than the whole: not a part of this file.
            restart(sink, partial, got)?;
        }
        let mut response = match self.remote.get(self.cache.repo(), self.commit, file, *got) {
            Ok(response) => response,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let status = response.status().as_u16();
        if status == 416 {
            restart(sink, partial, got)?;
            return Ok(Some("the server refused to continue".to_owned()));
        }
        if status == 429 || status >= 500 {
            return Ok(Some(format!("HTTP {status}")));
        }
        self.remote.refuse_error(&response, self.kind, self.cache.repo(), &file.path)?;
        let starts_at = if status == 206 { range_start(response.headers()) } else { Some(0) };
        if starts_at != Some(*got) {
            if starts_at != Some(0) {
                return Ok(Some("the server sent another part than asked for".to_owned()));
            }
            restart(sink, partial, got)?;
            progress.start(&file.path, file.size);
        }
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => n,
                Err(error) => return Ok(Some(error.to_string())),
            };
            // More than announced: the surplus would make a file that is not the one listed.
            if *got + n as u64 > file.size {
                restart(sink, partial, got)?;
                return Ok(Some("the server sent more bytes than the file has".to_owned()));
            }
            sink.write_all(&buffer[..n]).map_err(HubError::cache("write", partial))?;
            *got += n as u64;
            progress.advance(n as u64);
        }
    }
}

fn restart(sink: &mut File, partial: &Path, got: &mut u64) -> Result<(), HubError> {
    sink.set_len(0)
        .and_then(|()| sink.seek(SeekFrom::Start(0)))
        .map_err(HubError::cache("truncate", partial))?;
    *got = 0;
    Ok(())
}

fn is_whole(blob: &Path, size: u64) -> bool {
    blob.metadata().is_ok_and(|meta| meta.len() == size)
}

/// Waits until no other process, Python's included, writes this blob. Dropping the file lets go.
fn lock(path: &Path) -> Result<File, HubError> {
    let folder = path.parent().expect("invariant: a lock lies in a folder");
    fs::create_dir_all(folder).map_err(HubError::cache("create", folder))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(HubError::cache("open", path))?;
    file.lock().map_err(HubError::cache("lock", path))?;
    Ok(file)
}

/// First byte of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &ureq::http::HeaderMap) -> Option<u64> {
    headers
        .get("content-range")?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}
