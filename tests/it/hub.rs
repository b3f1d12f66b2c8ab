//! Names → files, against a hub on loopback.

mod server;

pub(crate) use server::{Fault, HubServer};

use saesweep::hub::{HubError, HubOptions, Progress, Token, fetch_dataset, fetch_model};
use std::{fs, path::Path, time::Duration};

const SECRET: &str = "hf_very_secret";

fn options(server: &HubServer, cache: &Path) -> HubOptions {
    HubOptions {
        offline: false,
        endpoint: Some(server.url.clone()),
        token: Token::new(SECRET),
        cache_dir: Some(cache.to_owned()),
        retry_wait: Duration::ZERO,
    }
}

fn weights() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i % 251) as u8).collect()
}

fn add_model(server: &HubServer) {
    server.add(
        "models/org/tiny",
        "main",
        &[
            ("README.md", b"# tiny"),
            ("config.json", b"{}"),
            ("tokenizer.json", b"{\"tokenizer\": 1}"),
            ("model.safetensors", &weights()),
            ("pytorch_model.bin", &weights()[1..]),
        ],
    );
}

/// Writes down what it is told.
#[derive(Default)]
struct Log {
    starts: Vec<(String, u64)>,
    bytes: u64,
    finished: usize,
}

impl Progress for Log {
    fn start(&mut self, file: &str, bytes: u64) {
        self.starts.push((file.to_owned(), bytes));
    }
    fn advance(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
    fn finish(&mut self) {
        self.finished += 1;
    }
}

#[test]
fn model_is_downloaded_once_and_then_found_offline() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    let mut options = options(&server, cache.path());
    let mut log = Log::default();
    let folder = fetch_model("org/tiny", &options, &mut log).unwrap();
    assert!(folder.starts_with(cache.path().join("models--org--tiny/snapshots")), "{}", folder.display());
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), b"{\"tokenizer\": 1}");
    // Only what is needed: neither the second copy of the weights nor the README.
    assert!(!folder.join("pytorch_model.bin").exists() && !folder.join("README.md").exists());
    assert_eq!(log.starts.len(), 3);
    assert_eq!(log.finished, 3);
    assert_eq!(log.bytes, 200_000 + 2 + 16);

    // A second time only the listing is asked for.
    let before = server.requests().0.len();
    assert_eq!(fetch_model("org/tiny@main", &options, &mut ()).unwrap(), folder);
    assert_eq!(server.requests().0.len(), before + 1);

    options.offline = true;
    assert_eq!(fetch_model("org/tiny", &options, &mut ()).unwrap(), folder);
    assert_eq!(server.requests().0.len(), before + 1);

    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = fetch_model("org/tiny", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("missing: weights") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let error = fetch_model("org/other", &options, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
}

#[test]
fn python_finds_the_layout_it_expects() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    let folder = fetch_model("org/tiny", &options(&server, cache.path()), &mut ()).unwrap();
    let repo = cache.path().join("models--org--tiny");
    let commit = fs::read_to_string(repo.join("refs/main")).unwrap();
    assert_eq!(folder, repo.join("snapshots").join(&commit));
    let link = fs::read_link(folder.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(&blake3::hash(&weights()).to_hex()[..]));
    let blobs: Vec<_> = fs::read_dir(repo.join("blobs")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(blobs.iter().all(|name| !name.to_string_lossy().contains('.')), "{blobs:?}");
    // A commit is a revision too, with the network and without.
    let mut options = options(&server, cache.path());
    assert_eq!(fetch_model(&format!("org/tiny@{commit}"), &options, &mut ()).unwrap(), folder);
    options.offline = true;
    assert_eq!(fetch_model(&format!("org/tiny@{commit}"), &options, &mut ()).unwrap(), folder);
}

#[test]
fn token_goes_to_the_hub_and_nowhere_else() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    fetch_model("org/tiny", &options(&server, cache.path()), &mut ()).unwrap();
    let (hub, content) = server.requests();
    assert!(!hub.is_empty() && hub.iter().all(|request| request.contains(SECRET)), "{hub:?}");
    assert!(!content.is_empty() && !content.iter().any(|request| request.contains(SECRET)), "{content:?}");
}

#[test]
fn sharded_weights_follow_their_index() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let mut files: Vec<(&str, &[u8])> = vec![
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
    ];
    server.add("models/org/sharded", "main", &files);
    files.pop();
    server.add("models/org/torn", "main", &files);
    let mut options = options(&server, cache.path());
    let folder = fetch_model("org/sharded", &options, &mut ()).unwrap();
    assert_eq!(fs::read(folder.join("model-2.safetensors")).unwrap(), b"two");
    let error = fetch_model("org/torn", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no model-2.safetensors, which model.safetensors.index.json names"), "{error}");
    options.offline = true;
    fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let error = fetch_model("org/sharded", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("missing: model-2.safetensors"), "{error}");
}

#[test]
fn pickled_weights_and_old_tokenizers_are_taken_when_there_is_nothing_newer() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 4] =
        [("config.json", b"{}"), ("pytorch_model.bin", b"w"), ("vocab.json", b"{}"), ("merges.txt", b"m")];
    server.add("models/org/old", "main", &files);
    server.add("models/org/gguf", "main", &[("model-q4.gguf", b"w"), ("config.json", b"{}")]);
    let options = options(&server, cache.path());
    let folder = fetch_model("org/old", &options, &mut ()).unwrap();
    for (file, bytes) in files {
        assert_eq!(fs::read(folder.join(file)).unwrap(), bytes);
    }
    let error = fetch_model("org/gguf", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no weights that can be read") && error.contains("model-q4.gguf"), "{error}");
}

#[test]
fn dataset_gives_the_training_parquet_files_in_order() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"x"),
        ("data/train-00001-of-00002.parquet", b"second"),
        ("data/train-00000-of-00002.parquet", b"first"),
        ("data/test-00000-of-00001.parquet", b"test"),
    ];
    server.add("datasets/org/stories", "main", &files);
    let mut options = options(&server, cache.path());
    let online = fetch_dataset("org/stories", &options, &mut ()).unwrap();
    let contents: Vec<_> = online.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(contents, ["first", "second"]);
    options.offline = true;
    assert_eq!(fetch_dataset("org/stories", &options, &mut ()).unwrap(), online);
    fs::remove_file(&online[0]).unwrap();
    let error = fetch_dataset("org/stories", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("missing: data/train-00000-of-00002"), "{error}");
    let error = fetch_dataset("org/none", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("data set `org/none` is not complete in the cache"), "{error}");
}

#[test]
fn dataset_without_parquet_is_taken_from_the_converted_branch() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.add("datasets/org/text", "main", &[("stories.txt", b"once")]);
    server.add("datasets/org/raw", "main", &[("stories.txt", b"once")]);
    server.add("datasets/org/text", "refs/convert/parquet", &[("default/train/0000.parquet", b"rows")]);
    let mut options = options(&server, cache.path());
    let files = fetch_dataset("org/text", &options, &mut ()).unwrap();
    assert_eq!(fs::read(&files[0]).unwrap(), b"rows");
    let error = fetch_dataset("org/raw", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no parquet files") && error.contains("stories.txt"), "{error}");
    // Who names a revision gets that one.
    let error = fetch_dataset("org/text@main", &options, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::NoUsableFiles { .. }), "{error}");
    options.offline = true;
    assert_eq!(fetch_dataset("org/text", &options, &mut ()).unwrap(), files);
}

#[test]
fn what_does_not_exist_is_said() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    let mut options = options(&server, cache.path());
    let error = fetch_model("org/none", &options, &mut ()).unwrap_err().to_string();
    let expected =
        format!("model `org/none` does not exist on {}, or the token in HF_TOKEN has no access", server.url);
    assert!(error.starts_with(&expected), "{error}");
    options.token = None;
    let error = fetch_dataset("org/none", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("does not exist") && error.contains("set HF_TOKEN"), "{error}");
    let error = fetch_model("org/tiny@v9", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("no revision `v9`"), "{error}");
}

#[test]
fn gated_repositories_say_what_to_do() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    for (status, with_token) in [(401, false), (403, true)] {
        add_model(&server);
        server.refuse("models/org/tiny", status, "GatedRepo");
        let mut options = options(&server, cache.path());
        options.token = options.token.filter(|_| with_token);
        let error = fetch_model("org/tiny", &options, &mut ()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&format!("HTTP {status}")) && shown.contains("accept its licence"), "{shown}");
        assert!(shown.contains(&format!("{}/org/tiny", server.url)) && shown.contains("HF_TOKEN"), "{shown}");
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn broken_downloads_are_resumed() {
    for (requests, faults) in [
        (5, &[Fault::CutAfter(70_000), Fault::CutAfter(0), Fault::Status(503), Fault::CutAfter(9)][..]),
        (2, &[Fault::CutAfter(70_000), Fault::IgnoreRange]),
        (2, &[Fault::Surplus(70_000)]),
        (3, &[Fault::CutAfter(70_000), Fault::Status(416)]),
    ] {
        let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
        add_model(&server);
        server.faults(faults);
        let folder = fetch_model("org/tiny", &options(&server, cache.path()), &mut ()).unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights(), "{faults:?}");
        assert_eq!(server.requests().1.len(), requests, "{faults:?}");
    }
}

#[test]
fn download_that_cannot_be_resumed_leaves_no_file_and_continues_next_time() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    let mut faults = vec![Fault::CutAfter(70_000)];
    faults.extend([Fault::CutAfter(0); 5]);
    server.faults(&faults);
    let mut options = options(&server, cache.path());
    let error = fetch_model("org/tiny", &options, &mut ()).unwrap_err().to_string();
    let expected = "download of `model.safetensors` broke off at 70000 of 200000 bytes after 6 attempts";
    assert!(error.starts_with(expected), "{error}");
    options.offline = true;
    let error = fetch_model("org/tiny", &options, &mut ()).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    options.offline = false;
    let mut log = Log::default();
    let folder = fetch_model("org/tiny", &options, &mut log).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(log.starts, [("model.safetensors".to_owned(), 200_000)]);
    let last = server.requests().1.pop().unwrap().to_lowercase();
    assert!(last.contains("range: bytes=70000-"), "{last}");
}

#[test]
fn hub_out_of_reach_is_replaced_by_a_complete_copy() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    add_model(&server);
    let mut options = options(&server, cache.path());
    let folder = fetch_model("org/tiny", &options, &mut ()).unwrap();
    server.fail_listings(503);
    assert_eq!(fetch_model("org/tiny", &options, &mut ()).unwrap(), folder);
    let error = fetch_model("org/none", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("answered HTTP 503"), "{error}");
    // Nobody listens on a port that was given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    options.endpoint = Some(format!("http://{port}"));
    assert_eq!(fetch_model("org/tiny", &options, &mut ()).unwrap(), folder);
    let error = fetch_dataset("org/none", &options, &mut ()).unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}
