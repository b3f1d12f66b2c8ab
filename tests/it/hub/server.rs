//! A small hub on loopback: lists repositories and serves files as the real one does, the large ones through
//! a redirect to a content host of its own, which can be told to misbehave.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};
use tiny_http::{Header, Response, Server};

/// Files from this length on live on the content host, as LFS files do.
const LARGE: usize = 1000;

/// How the content host answers one request wrongly.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Closes the connection after that many bytes of the body.
    CutAfter(usize),
    /// Answers with that status.
    Status(u16),
    /// Sends the whole file whatever range was asked for.
    IgnoreRange,
    /// Sends that many bytes more than the file has.
    Surplus(usize),
}

/// A running hub.
pub(crate) struct HubServer {
    /// Its address, for `HF_ENDPOINT`.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Files by `models/org/name` and revision.
    repos: BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>,
    /// Status and error code with which files of a repository are refused.
    refused: BTreeMap<String, (u16, &'static str)>,
    /// Status with which every listing is refused.
    listing_status: Option<u16>,
    faults: VecDeque<Fault>,
    requests: Vec<String>,
    content_requests: Vec<String>,
}

impl HubServer {
    /// Starts a hub without repositories.
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let content = TcpListener::bind("127.0.0.1:0").unwrap();
        let content_url = format!("http://{}", content.local_addr().unwrap());
        let server = Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}", server.server_addr());
        let content_state = Arc::clone(&state);
        thread::spawn(move || {
            for stream in content.incoming().flatten() {
                // A client that hangs up early is part of the game.
                drop(serve_content(stream, &content_state));
            }
        });
        let api_state = Arc::clone(&state);
        thread::spawn(move || {
            for request in server.incoming_requests() {
                let response = answer(&request, &content_url, &api_state);
                drop(request.respond(response));
            }
        });
        Self { url, state }
    }

    /// Adds a repository (`models/org/name` or `datasets/org/name`) at a revision.
    pub(crate) fn add(&self, repo: &str, revision: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
        self.state.lock().unwrap().repos.insert((repo.to_owned(), revision.to_owned()), files);
    }

    /// Refuses the files of a repository, as for gated ones; its listing stays public.
    pub(crate) fn refuse(&self, repo: &str, status: u16, code: &'static str) {
        self.state.lock().unwrap().refused.insert(repo.to_owned(), (status, code));
    }

    /// Answers every listing with this status.
    pub(crate) fn fail_listings(&self, status: u16) {
        self.state.lock().unwrap().listing_status = Some(status);
    }

    /// Makes the content host answer its next requests wrongly, one fault each.
    pub(crate) fn faults(&self, faults: &[Fault]) {
        self.state.lock().unwrap().faults.extend(faults);
    }

    /// Requests so far, `GET /path` with the headers that matter; those of the content host apart.
    pub(crate) fn requests(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state.lock().unwrap();
        (state.requests.clone(), state.content_requests.clone())
    }
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).unwrap()
}

fn commit(repo: &str, revision: &str) -> String {
    blake3::hash(format!("{repo}@{revision}").as_bytes()).to_hex()[..40].to_owned()
}

fn answer(
    request: &tiny_http::Request,
    content_url: &str,
    state: &Mutex<State>,
) -> Response<std::io::Cursor<Vec<u8>>> {
    let find = |name: &str| {
        let header = request.headers().iter().find(|h| h.field.as_str().as_str().eq_ignore_ascii_case(name));
        header.map(|h| h.value.as_str().to_owned())
    };
    let mut state = state.lock().unwrap();
    state.requests.push(format!("{} {}", request.url(), find("authorization").unwrap_or_default()));
    let path = request.url().split('?').next().unwrap().replace("%2F", "/");
    let coded = |status: u16, code: &str| {
        Response::from_string("refused").with_status_code(status).with_header(header("X-Error-Code", code))
    };
    let known: Vec<(String, String)> = state.repos.keys().cloned().collect();
    if let Some(rest) = path.strip_prefix("/api/") {
        if let Some(status) = state.listing_status {
            return Response::from_string("down").with_status_code(status);
        }
        let (repo, revision) = rest.split_once("/revision/").unwrap();
        let Some((_, revision)) =
            known.iter().find(|(r, v)| r == repo && (v == revision || commit(r, v) == revision))
        else {
            let exists = known.iter().any(|(r, _)| r == repo);
            return coded(404, if exists { "RevisionNotFound" } else { "RepoNotFound" });
        };
        let siblings: Vec<serde_json::Value> = state.repos[&(repo.to_owned(), revision.clone())]
            .iter()
            .map(|(path, bytes)| {
                let hash = blake3::hash(bytes).to_hex();
                if bytes.len() < LARGE {
                    serde_json::json!({"rfilename": path, "size": bytes.len(), "blobId": &hash[..40]})
                } else {
                    let lfs = serde_json::json!({"sha256": &hash[..], "size": bytes.len(), "pointerSize": 9});
                    serde_json::json!({"rfilename": path, "size": bytes.len(), "blobId": &hash[..40], "lfs": lfs})
                }
            })
            .collect();
        let listing = serde_json::json!({"sha": commit(repo, revision), "siblings": siblings});
        return Response::from_string(listing.to_string());
    }
    let (repo, rest) = path[1..].split_once("/resolve/").unwrap();
    let repo = if repo.starts_with("datasets/") { repo.to_owned() } else { format!("models/{repo}") };
    if let Some((status, code)) = state.refused.get(&repo) {
        return coded(*status, code);
    }
    let (asked, file) = rest.split_once('/').unwrap();
    let key = known.iter().find(|(r, v)| *r == repo && commit(r, v) == asked);
    match key.and_then(|key| state.repos[key].get(file)) {
        None => coded(404, "EntryNotFound"),
        Some(bytes) if bytes.len() < LARGE => Response::from_data(bytes.clone()),
        Some(bytes) => {
            let location = format!("{content_url}/{}", blake3::hash(bytes).to_hex());
            Response::from_data(Vec::new()).with_status_code(302).with_header(header("Location", &location))
        }
    }
}

fn serve_content(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while reader.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
    let mut state = state.lock().unwrap();
    state.content_requests.push(head.clone());
    let fault = state.faults.pop_front();
    let hash = head.split([' ', '/']).nth(2).unwrap();
    let all = state.repos.values().flat_map(BTreeMap::values);
    let bytes = all.into_iter().find(|bytes| blake3::hash(bytes).to_hex()[..] == *hash).unwrap().clone();
    drop(state);
    let range = head.to_lowercase();
    let from =
        range.split("range: bytes=").nth(1).and_then(|text| text.split('-').next()?.parse::<usize>().ok());
    let from = if matches!(fault, Some(Fault::IgnoreRange)) { None } else { from };
    let mut body = bytes[from.unwrap_or(0)..].to_vec();
    let mut status = if from.is_some() { "206 Partial Content".to_owned() } else { "200 OK".to_owned() };
    match fault {
        Some(Fault::Status(code)) => (status, body) = (format!("{code} Fault"), Vec::new()),
        Some(Fault::Surplus(n)) => body.extend(vec![b'x'; n]),
        _ => {}
    }
    let length = body.len();
    if let Some(Fault::CutAfter(n)) = fault {
        body.truncate(n);
    }
    let mut out = stream;
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n")?;
    if let Some(from) = from {
        write!(out, "Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len())?;
    }
    out.write_all(b"\r\n")?;
    out.write_all(&body)?;
    out.shutdown(std::net::Shutdown::Write)?;
    // Lets the client read what was sent before the connection is torn down.
    let mut rest = [0; 64];
    while reader.read(&mut rest)? > 0 {}
    Ok(())
}
