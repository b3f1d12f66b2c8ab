//! The rules of the source tree, held by walking it: layers, file headers, file lengths, the top level.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Rank of every module; a module may use only modules of lower rank. `ARCHITECTURE.md` gives the reasons.
const RANKS: &[(&str, u8)] = &[
    ("failpoint", 0),
    ("hub", 0),
    ("kernels", 0),
    ("metric", 0),
    ("slot", 0),
    ("trial", 0),
    ("data", 1),
    ("event", 1),
    ("model", 1),
    ("sae", 1),
    ("source", 1),
    ("spec", 1),
    ("store", 1),
    ("eval", 2),
    ("harvest", 2),
    ("rundir", 2),
    ("train", 2),
    ("sched", 3),
    ("table", 3),
    ("report", 4),
    ("cli", 5),
];

/// Longest source file; one that needs more says why in its first lines with the words "long because".
const MAX_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Module of the top level that a file below `src/` belongs to.
fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Top-level modules named behind `crate::` in a text, grouped imports (`crate::{a::B, c}`) included.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0_usize, String::new());
            for character in group.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => used.push(std::mem::take(&mut item)),
                    _ if depth == 0 => item.push(character),
                    _ => {}
                }
            }
            used.push(item);
        } else {
            used.push(rest.to_owned());
        }
    }
    used.iter()
        .map(|item| item.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_lower_ranks_only() {
    let ranks: BTreeMap<&str, u8> = RANKS.iter().copied().collect();
    let mut wrong = Vec::new();
    for path in rust_files(&root().join("src")) {
        let module = module_of(&path);
        if module == "main" || module == "lib" {
            continue;
        }
        let rank = *ranks.get(module.as_str()).unwrap_or_else(|| panic!("{module} has no rank"));
        for used in used_modules(&fs::read_to_string(&path).unwrap()) {
            let Some(&used_rank) = ranks.get(used.as_str()) else { continue };
            if used != module && used_rank >= rank {
                wrong.push(format!("{} (rank {rank}) uses {used} (rank {used_rank})", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn grouped_imports_are_seen() {
    assert_eq!(
        used_modules("use crate::{\n    a::{B, c},\n    d,\n};\nlet x = crate::e::f();"),
        ["a", "d", "e"]
    );
}

#[test]
fn only_tables_and_data_know_polars() {
    for path in rust_files(&root().join("src")) {
        let module = module_of(&path);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("polars::") || ["table", "data"].contains(&module.as_str()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn every_file_says_what_it_is_for_and_is_short() {
    let mut wrong = Vec::new();
    for dir in ["src", "tests"] {
        for path in rust_files(&root().join(dir)) {
            let text = fs::read_to_string(&path).unwrap();
            if !text.starts_with("//! ") {
                wrong.push(format!("{} does not start with `//! `", path.display()));
            }
            let excused = text.lines().take(20).any(|line| line.contains("long because"));
            if text.lines().count() > MAX_LINES && !excused {
                wrong.push(format!("{} has {} lines", path.display(), text.lines().count()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_is_as_agreed() {
    let agreed = ["Cargo.toml", "Cargo.lock", "src", "sweeps", "templates", "results", "tests", "README.md"];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || name == "target" || agreed.contains(&name.as_str()),
            "`{name}` lies at the top level"
        );
    }
}

#[test]
fn fixtures_stay_small() {
    let mut bytes = 0;
    let mut dirs = vec![root().join("tests/fixtures")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                bytes += entry.metadata().unwrap().len();
            }
        }
    }
    assert!(bytes < 10_000_000, "fixtures take {bytes} bytes");
}
