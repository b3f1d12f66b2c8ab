//! Where the hub and its cache are: the variables that Python's `huggingface_hub` reads, read the same way.

use super::HubError;
use std::{fmt, path::PathBuf, time::Duration};

/// The outside world of this module.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Use only what the cache holds.
    pub offline: bool,
    /// Address of the hub; `None` is huggingface.co.
    pub endpoint: Option<String>,
    /// Access token.
    pub token: Option<Token>,
    /// Folder of the cache (the one with `models--…` in it); `None` is the default one in the home folder.
    pub cache_dir: Option<PathBuf>,
    /// Wait before the first retry of a download; every further one waits twice as long.
    pub retry_wait: Duration,
}

impl HubOptions {
    /// Reads `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` (or the token file), `HF_HUB_CACHE` and `HF_HOME`.
    pub fn from_env() -> Self {
        Self::from_vars(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), dirs::home_dir())
    }

    fn from_vars(var: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let hf_home = var("HF_HOME").map(|path| expand_home(&path, home.as_ref())).or_else(|| {
            let cache = var("XDG_CACHE_HOME")
                .map(|path| expand_home(&path, home.as_ref()))
                .or_else(|| Some(home.as_ref()?.join(".cache")));
            Some(cache?.join("huggingface"))
        });
        let cache_dir = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map(|path| expand_home(&path, home.as_ref()))
            .or_else(|| Some(hf_home.as_ref()?.join("hub")));
        let token_file = var("HF_TOKEN_PATH")
            .map(|path| expand_home(&path, home.as_ref()))
            .or_else(|| Some(hf_home.as_ref()?.join("token")));
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .and_then(Token::new);
        let offline = var("HF_HUB_OFFLINE")
            .or_else(|| var("TRANSFORMERS_OFFLINE"))
            .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
        Self { offline, endpoint: var("HF_ENDPOINT"), token, cache_dir, retry_wait: Duration::from_secs(1) }
    }

    pub(crate) fn endpoint_url(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("https://huggingface.co").trim_end_matches('/')
    }

    pub(crate) fn cache_folder(&self) -> Result<PathBuf, HubError> {
        match &self.cache_dir {
            Some(folder) => Ok(folder.clone()),
            None => Ok(dirs::home_dir().ok_or(HubError::NoCacheDir)?.join(".cache/huggingface/hub")),
        }
    }
}

/// An access token. It is shown nowhere: its `Debug` form hides it and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as written in a variable or a file; blank ones are none.
    pub fn new(text: impl AsRef<str>) -> Option<Self> {
        let text = text.as_ref().trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

fn expand_home(path: &str, home: Option<&PathBuf>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn options(vars: &[(&str, &str)], home: &Path) -> HubOptions {
        let find = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HubOptions::from_vars(&find, Some(home.to_owned()))
    }

    #[test]
    fn cache_folder_follows_the_most_specific_variable() {
        let home = Path::new("/h");
        let check = |vars: &[(&str, &str)], expected: &str| {
            assert_eq!(options(vars, home).cache_dir.as_deref(), Some(Path::new(expected)));
        };
        check(&[], "/h/.cache/huggingface/hub");
        check(&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub");
        check(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")], "/h/hf/hub");
        check(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], "/c");
        check(&[("HUGGINGFACE_HUB_CACHE", "/old")], "/old");
    }

    #[test]
    fn offline_takes_the_spellings_of_python() {
        let check = |value: &str, expected: bool| {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)], Path::new("/h")).offline, expected, "{value}");
        };
        for (value, expected) in
            [("1", true), ("true", true), ("Yes", true), ("ON", true), ("0", false), ("no", false)]
        {
            check(value, expected);
        }
    }

    #[test]
    fn token_comes_from_the_variable_else_from_the_file() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(options(&[], home.path()).token, None);
        std::fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        std::fs::write(home.path().join(".cache/huggingface/token"), "hf_file\n").unwrap();
        assert_eq!(options(&[], home.path()).token, Token::new("hf_file"));
        assert_eq!(options(&[("HF_TOKEN", "hf_var")], home.path()).token, Token::new("hf_var"));
    }

    #[test]
    fn token_is_not_shown() {
        let shown = format!("{:?}", options(&[("HF_TOKEN", "hf_secret")], Path::new("/h")));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
