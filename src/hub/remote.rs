//! Questions to the hub: which files a repository has at a revision, and what a refusal means.

use super::{
    HubError, HubOptions, RepoKind,
    cache::{RepoCache, is_commit},
};
use hf_hub::{
    Cache, Repo,
    api::sync::{Api, ApiBuilder},
};
use serde::Deserialize;
use std::time::Duration;
use ureq::{
    Agent,
    http::{HeaderMap, Response},
    tls::{TlsConfig, TlsProvider},
};

/// A repository at one commit.
pub(crate) struct Listing {
    /// The commit.
    pub(crate) commit: String,
    /// Its files, sorted by path.
    pub(crate) files: Vec<RemoteFile>,
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Path in the repository.
    pub(crate) path: String,
    /// Length in bytes.
    pub(crate) size: u64,
    /// Hash that names the content in the cache.
    pub(crate) etag: String,
}

/// Hops from the hub to the host that serves a file.
const MAX_REDIRECTS: u32 = 10;

/// A connection to one hub.
pub(crate) struct Remote<'a> {
    options: &'a HubOptions,
    // Both hold the token in their headers: neither may be shown, so this struct has no `Debug`.
    api: Api,
    agent: Agent,
    /// A hub on this machine is never behind a proxy.
    direct: bool,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(options: &'a HubOptions) -> Result<Self, HubError> {
        let url = options.endpoint_url();
        let api = ApiBuilder::from_cache(Cache::new(options.cache_folder()?))
            .with_endpoint(url.to_owned())
            .with_token(options.token.as_ref().map(|token| token.secret().to_owned()))
            .with_progress(false)
            .with_user_agent("saesweep", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| HubError::Unreachable { url: url.to_owned(), cause: error.to_string() })?;
        let direct = is_loopback(url);
        let mut config = Agent::config_builder()
            .tls_config(TlsConfig::builder().provider(TlsProvider::Rustls).build())
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("saesweep/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if direct {
            config = config.proxy(None);
        }
        Ok(Self { options, api, agent: config.build().into(), direct })
    }

    /// Lists a repository at the revision of `cache`.
    pub(crate) fn listing(&self, kind: RepoKind, cache: &RepoCache) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}", self.options.endpoint_url(), cache.repo().api_url());
        let unreachable =
            |error: ureq::Error| HubError::Unreachable { url: url.clone(), cause: error.to_string() };
        let mut config = self
            .api
            .repo(cache.repo().clone())
            .info_request()
            .query("blobs", "true")
            .config()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if self.direct {
            config = config.proxy(None);
        }
        let mut response = config.build().call().map_err(unreachable)?;
        self.refuse_error(&response, kind, cache.repo(), &url)?;
        // Data sets of many thousand files have listings of many megabytes.
        let limit = 256 << 20;
        let text = response.body_mut().with_config().limit(limit).read_to_string().map_err(unreachable)?;
        parse_listing(&text).map_err(|reason| HubError::Protocol { url, reason })
    }

    /// Asks for a file from byte `from` on.
    ///
    /// Redirects are followed here, because the token is for the hub alone: large files are served by other
    /// hosts, and a host on another port is another one.
    pub(crate) fn get(
        &self,
        repo: &Repo,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<Response<ureq::Body>, ureq::Error> {
        let at_commit = Repo::with_revision(repo_id(repo), repo_type(repo), commit.to_owned());
        let mut url = self.api.repo(at_commit).url(&escaped(&file.path));
        let hub = origin(self.options.endpoint_url()).to_owned();
        for _ in 0..=MAX_REDIRECTS {
            // A compressed answer could neither be resumed nor measured.
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if let Some(token) = self.options.token.as_ref().filter(|_| origin(&url) == hub) {
                request = request.header("Authorization", format!("Bearer {}", token.secret()));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            let response = request.call()?;
            match response.headers().get("location").filter(|_| response.status().is_redirection()) {
                None => return Ok(response),
                Some(location) => {
                    let location =
                        location.to_str().map_err(|error| ureq::Error::BadUri(error.to_string()))?;
                    url = if location.starts_with('/') {
                        format!("{}{location}", origin(&url))
                    } else {
                        location.to_owned()
                    };
                }
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }

    /// Turns an answer that is no success into the error that says what to do about it.
    pub(crate) fn refuse_error<T>(
        &self,
        response: &Response<T>,
        kind: RepoKind,
        repo: &Repo,
        url: &str,
    ) -> Result<(), HubError> {
        if response.status().is_success() {
            return Ok(());
        }
        let status = response.status().as_u16();
        let endpoint = self.options.endpoint_url().to_owned();
        let with_token = self.options.token.is_some();
        let id = repo_id(repo);
        Err(match (status, error_code(response.headers())) {
            (_, Some("RevisionNotFound")) => {
                HubError::RevisionNotFound { kind, repo: id, revision: repo.revision().to_owned(), endpoint }
            }
            (401 | 403 | 404, Some("RepoNotFound")) | (404, None) => {
                HubError::NotFound { kind, repo: id, endpoint, with_token }
            }
            (401 | 403, _) => {
                let page = format!("{endpoint}/{}", repo.url());
                HubError::Denied { kind, repo: id, endpoint, page, status, with_token }
            }
            _ => HubError::Status { url: url.to_owned(), status },
        })
    }
}

fn error_code(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-error-code")?.to_str().ok()
}

/// `Repo` keeps its id to itself; its url is the id, after a prefix for data sets.
fn repo_id(repo: &Repo) -> String {
    let url = repo.url();
    url.strip_prefix("datasets/").unwrap_or(&url).to_owned()
}

fn repo_type(repo: &Repo) -> hf_hub::RepoType {
    if repo.folder_name().starts_with("datasets--") {
        hf_hub::RepoType::Dataset
    } else {
        hf_hub::RepoType::Model
    }
}

/// `scheme://host:port` of a url.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

fn is_loopback(url: &str) -> bool {
    let authority = origin(url).split_once("://").map_or(url, |(_, authority)| authority);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _port)| host);
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// File names may hold any character; urls may not.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])),
            );
        }
    }
    out
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: String,
    size: Option<u64>,
}

/// Reads the hub's answer. Names in it become paths on this machine, so they are checked first.
fn parse_listing(text: &str) -> Result<Listing, String> {
    let raw: RawListing = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !is_commit(&raw.sha) {
        return Err(format!("`{}` is not a commit", raw.sha));
    }
    let mut files = Vec::with_capacity(raw.siblings.len());
    for file in raw.siblings {
        let path = file.rfilename;
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") || path.contains('\\') {
            return Err(format!("`{path}` is not a path inside a repository"));
        }
        let size = file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size);
        let etag = file.lfs.map(|lfs| lfs.sha256).or(file.blob_id);
        let (Some(size), Some(etag)) = (size, etag) else {
            return Err(format!("it does not tell size and hash of `{path}`"));
        };
        if etag.is_empty() || !etag.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format!("`{etag}` is not a hash"));
        }
        files.push(RemoteFile { path, size, etag });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Listing { commit: raw.sha, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(siblings: &str) -> Result<Vec<RemoteFile>, String> {
        parse_listing(&format!(r#"{{"sha": "{COMMIT}", "siblings": {siblings}}}"#)).map(|l| l.files)
    }

    #[test]
    fn listing_takes_the_hash_of_the_content() {
        let files = parse(
            r#"[{"rfilename": "w.bin", "size": 7, "blobId": "aa", "lfs": {"sha256": "bb", "size": 7, "pointerSize": 1}},
                {"rfilename": "a/c.json", "size": 3, "blobId": "cc"}]"#,
        )
        .unwrap();
        assert_eq!(files[0], RemoteFile { path: "a/c.json".to_owned(), size: 3, etag: "cc".to_owned() });
        assert_eq!(files[1], RemoteFile { path: "w.bin".to_owned(), size: 7, etag: "bb".to_owned() });
    }

    #[test]
    fn listing_with_names_that_lead_elsewhere_is_refused() {
        for (path, etag) in
            [("../x", "aa"), ("/etc/x", "aa"), ("a//b", "aa"), ("a\\\\b", "aa"), ("x", "../aa"), ("x", "")]
        {
            let siblings = format!(r#"[{{"rfilename": "{path}", "size": 1, "blobId": "{etag}"}}]"#);
            assert!(parse(&siblings).is_err(), "{path} {etag}");
        }
        assert!(parse_listing(r#"{"sha": "../../x", "siblings": []}"#).is_err());
        assert!(parse(r#"[{"rfilename": "x"}]"#).is_err());
    }

    #[test]
    fn urls_are_escaped() {
        assert_eq!(escaped("data/tr ain#1%.parquet"), "data/tr%20ain%231%25.parquet");
    }

    #[test]
    fn origin_ends_before_the_path() {
        for (url, expected) in [
            ("https://a.b/c/d", "https://a.b"),
            ("http://a.b:80?x", "http://a.b:80"),
            ("https://a.b", "https://a.b"),
            ("https://hub.evil.com@x/y", "https://hub.evil.com@x"),
        ] {
            assert_eq!(origin(url), expected);
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for (url, expected) in [
            ("http://127.0.0.1:80/x", true),
            ("http://localhost:1", true),
            ("http://[::1]:8", true),
            ("https://huggingface.co", false),
            ("https://localhost.example.com", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
