//! `org/name`, optionally with a folder and a revision: how a sweep names something on the hub.

use super::HubError;
use std::fmt;

/// A parsed hub name: `org/name[/folder…][@revision]`.
///
/// The folder narrows a data set down to one of its configurations, or to one file. Repositories without an
/// organisation (`gpt2`) are accepted too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `org/name`, or `name`.
    pub repo: String,
    /// Path inside the repository, if one was given.
    pub folder: Option<String>,
    /// Branch, tag or commit, if one was given.
    pub revision: Option<String>,
}

impl HubName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`HubError::BadName`] when no repository could have it, for example because it is a path.
    pub fn parse(name: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::BadName { name: name.to_owned(), reason };
        let (path, revision) = match name.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (name, None),
        };
        if revision == Some("") {
            return Err(bad("nothing follows the `@`"));
        }
        if revision.is_some_and(|r| r.split('/').any(|part| !is_plain(part))) {
            return Err(bad("the revision holds a character that branches and tags do not have"));
        }
        let parts: Vec<&str> = path.split('/').collect();
        if let Some(part) = parts.iter().find(|part| !is_plain(part)) {
            return Err(bad(match *part {
                "" => "a part of it is empty",
                "." | ".." => "it is a path relative to a folder",
                _ => "only letters, digits, `-`, `_` and `.` can occur",
            }));
        }
        let repo_parts = parts.len().min(2);
        Ok(Self {
            repo: parts[..repo_parts].join("/"),
            folder: (parts.len() > 2).then(|| parts[2..].join("/")),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(folder) = &self.folder {
            write!(f, "/{folder}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && part != "."
        && part != ".."
        && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_repository_folder_and_revision() {
        let check = |text: &str, repo: &str, folder: Option<&str>, revision: Option<&str>| {
            let name = HubName::parse(text).unwrap();
            assert_eq!(name.repo, repo);
            assert_eq!(name.folder.as_deref(), folder);
            assert_eq!(name.revision.as_deref(), revision);
            assert_eq!(name.to_string(), text);
        };
        check("gpt2", "gpt2", None, None);
        check("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B", None, None);
        check("a/b@main", "a/b", None, Some("main"));
        check("a/b@refs/pr/5", "a/b", None, Some("refs/pr/5"));
        check("a/b/conf/train.parquet@v1", "a/b", Some("conf/train.parquet"), Some("v1"));
    }

    #[test]
    fn refuses_what_no_repository_is_called() {
        for text in
            ["", "/abs/path", "../up", "./here", "a//b", "a b/c", "a/b@", "a/b@../x", "C:\\x", "a/b?c"]
        {
            assert!(matches!(HubName::parse(text), Err(HubError::BadName { .. })), "{text}");
        }
    }
}
