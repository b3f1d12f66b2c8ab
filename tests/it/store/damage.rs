//! What is damaged is found and named.

use super::{SAMPLE, files, temp};
use saesweep::store::{Store, verify};
use std::fs;

#[test]
fn every_flipped_byte_is_found_and_its_file_named() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    let key = SAMPLE.identity().key();
    for (name, bytes) in files(&dir) {
        let path = dir.join(&name);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            let report = verify(&dir).unwrap();
            assert_eq!(report.problems.len(), 1, "byte {at} of {name}");
            let message = report.problems[0].to_string();
            assert!(message.contains(&name), "byte {at} of {name}: {message}");
            if name == "header.json" {
                assert!(Store::open(stores.path(), &key).is_err(), "byte {at} of {name}");
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(verify(&dir).unwrap().is_intact());
}

#[test]
fn every_wrong_length_is_found_on_opening() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    let key = SAMPLE.identity().key();
    for (name, bytes) in files(&dir) {
        let path = dir.join(&name);
        for len in (0..bytes.len()).chain([bytes.len() + 1]) {
            let mut cut = bytes.clone();
            cut.resize(len, b' ');
            fs::write(&path, &cut).unwrap();
            let error = Store::open(stores.path(), &key).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(&name), "{len} bytes of {name}: {message}");
            assert!(!verify(&dir).unwrap().is_intact());
            if name != "header.json" {
                let expected = format!("has {len} bytes, expected {}", bytes.len());
                assert!(message.contains(&expected), "{message}");
            }
        }
        fs::remove_file(&path).unwrap();
        let message = Store::open(stores.path(), &key).unwrap_err().to_string();
        assert!(message.contains(&name) && message.contains("No such file"), "{message}");
        assert!(!verify(&dir).unwrap().is_intact());
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn damaged_contents_under_a_right_checksum_are_errors_too() {
    // The readers of the parts must not rely on the checksum, which opening does not look at.
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    for name in ["eval.safetensors", "stats.safetensors"] {
        let path = dir.join(name);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len().min(700) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&path, &flipped).unwrap();
            let store = Store::open_dir(&dir).unwrap();
            // An error or other numbers, but no panic.
            if name.starts_with("eval") {
                drop(store.eval());
            } else {
                drop(store.stats());
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn another_store_under_a_wrong_name_is_not_taken_for_it() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    let other = "0123456789abcdef";
    fs::rename(&dir, stores.path().join(other)).unwrap();
    let message = Store::open(stores.path(), other).unwrap_err().to_string();
    assert!(
        message.ends_with(&format!("belongs to store {}, expected {other}", SAMPLE.identity().key())),
        "{message}"
    );
    assert!(!verify(&stores.path().join(other)).unwrap().is_intact());
}

#[test]
fn a_file_that_is_no_header_is_named() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    for (bytes, expected) in [
        (&b"not json"[..], "is not a readable store header: expected"),
        (b"{\"magic\": \"other\", \"version\": 1}", "magic word is `other`, expected `saesweep-store`"),
        (
            b"{\"magic\": \"saesweep-store\", \"version\": 99}",
            "has store format version 99, this program reads versions up to 1",
        ),
        (b"{\"magic\": \"saesweep-store\", \"version\": 1}", "its first field is not a checksum"),
    ] {
        fs::write(dir.join("header.json"), bytes).unwrap();
        let message = Store::open_dir(&dir).unwrap_err().to_string();
        assert!(message.contains("header.json") && message.contains(expected), "{message}");
    }
}
