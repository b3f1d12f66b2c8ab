//! Every malformed sweep file in `tests/fixtures/spec/malformed/` and what is said about it, as one snapshot.
//!
//! A file's first lines may be directives: `#! env NAME=value` and `#! set key=value`.

use saesweep::spec::{SpecSource, load};
use std::fmt::Write as _;

#[test]
fn malformed_files_are_explained() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/spec/malformed");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort();
    assert!(names.len() >= 40, "{}", names.len());
    let mut told = String::new();
    for name in &names {
        let text = std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
        let directives = |kind: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| line.strip_prefix("#! ")?.strip_prefix(kind))
                .map(str::to_owned)
                .collect()
        };
        let env = directives("env ").iter().map(|line| line.split_once('=').unwrap()).map(owned).collect();
        let source =
            SpecSource { path: name.clone(), text: text.clone(), env, overrides: directives("set ") };
        let errors = load(&source).expect_err(&format!("{name} is malformed"));
        for problem in &errors.problems {
            assert!(!problem.found.is_empty() && !problem.expected.is_empty(), "{name}: {problem}");
        }
        writeln!(told, "{errors}\n").unwrap();
    }
    insta::assert_snapshot!(told);
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}
