//! What is killed goes on, and who needs the same store at once builds it once.

use super::{SAMPLE, Sample, files, temp};
use saesweep::{
    store::{Store, StoreState, StoreWriter, WriterStart, list},
    trial::StoreDtype,
};
use std::{fs, path::Path};

#[test]
fn a_killed_build_goes_on_to_the_same_bytes() {
    let undisturbed = temp();
    let sample = Sample { sequences: 11, dtype: StoreDtype::Bfloat16, ..SAMPLE };
    let expected = files(&sample.build(undisturbed.path()));
    let key = sample.identity().key();
    let shards = sample.writer(temp().path()).shards();
    assert_eq!(shards, 6);
    for killed_after in 0..=shards {
        let stores = temp();
        let mut writer = sample.writer(stores.path());
        for _ in 0..killed_after {
            assert!(sample.step(&mut writer));
        }
        drop(writer);
        let partial = stores.path().join(format!("{key}.partial"));
        // As if it had been killed while it wrote the next shard.
        fs::write(partial.join(format!("train-{killed_after:05}.bin.tmp")), b"torn").unwrap();
        let message = Store::open(stores.path(), &key).unwrap_err().to_string();
        assert!(message.contains("is not complete"), "{message}");
        assert!(!stores.path().join(&key).exists());

        let mut writer = sample.writer(stores.path());
        assert_eq!(writer.rows_total(), 44);
        assert_eq!(writer.rows_done(), (killed_after as u64 * 8).min(44));
        let mut written = 0;
        while sample.step(&mut writer) {
            written += 1;
        }
        assert_eq!(written, shards - killed_after, "whole shards are not made again");
        let dir = writer.finish(sample.eval()).unwrap();
        assert_eq!(files(&dir), expected);
        assert!(!partial.exists());
    }
}

#[test]
fn a_build_killed_just_before_its_last_rename_is_whole() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    let expected = files(&dir);
    let partial = stores.path().join(format!("{}.partial", SAMPLE.identity().key()));
    fs::rename(&dir, &partial).unwrap();
    fs::write(partial.join("manifest.json"), b"left over").unwrap();
    match SAMPLE.start(stores.path()).unwrap() {
        WriterStart::AlreadyWhole(found) => assert_eq!(found, dir),
        WriterStart::Build(_) => panic!("nothing is left to do"),
    }
    assert_eq!(files(&dir), expected);
}

#[test]
fn a_damaged_shard_of_an_unfinished_build_is_made_again() {
    let stores = temp();
    let expected = files(&SAMPLE.build(temp().path()));
    let partial = stores.path().join(format!("{}.partial", SAMPLE.identity().key()));
    let mut writer = SAMPLE.writer(stores.path());
    SAMPLE.step(&mut writer);
    SAMPLE.step(&mut writer);
    drop(writer);
    let path = partial.join("train-00000.bin");
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut writer = SAMPLE.writer(stores.path());
    assert_eq!(writer.next_shard().unwrap().index, 0);
    SAMPLE.step(&mut writer);
    assert_eq!(writer.next_shard().unwrap().index, 2);
    SAMPLE.step(&mut writer);
    assert_eq!(files(&writer.finish(SAMPLE.eval()).unwrap()), expected);
}

#[test]
fn an_unfinished_build_that_cannot_be_read_starts_over() {
    let expected = files(&SAMPLE.build(temp().path()));
    for manifest in [None, Some(&b"{}"[..]), Some(b"{\"magic\": \"saesweep-store\", \"version\": 1}")] {
        let stores = temp();
        let partial = stores.path().join(format!("{}.partial", SAMPLE.identity().key()));
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("train-00000.bin"), b"who knows").unwrap();
        if let Some(bytes) = manifest {
            fs::write(partial.join("manifest.json"), bytes).unwrap();
        }
        assert_eq!(files(&SAMPLE.build(stores.path())), expected);
    }
}

#[test]
fn two_that_need_the_same_store_build_it_once() {
    let stores = temp();
    let identity = SAMPLE.identity();
    let mut writer = SAMPLE.writer(stores.path());
    SAMPLE.step(&mut writer);
    let second = StoreWriter::try_create(stores.path(), &identity, &SAMPLE.label(), 3, 5).unwrap();
    assert!(second.is_none(), "somebody else builds it");
    let found = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| match SAMPLE.start(stores.path()).unwrap() {
            WriterStart::AlreadyWhole(dir) => dir,
            WriterStart::Build(_) => panic!("built twice"),
        });
        while SAMPLE.step(&mut writer) {}
        let built = writer.finish(SAMPLE.eval()).unwrap();
        (built, waiting.join().unwrap())
    });
    assert_eq!(found.0, found.1);
    let mut names: Vec<_> = fs::read_dir(stores.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [identity.key(), format!("{}.lock", identity.key())].map(std::ffi::OsString::from));
}

#[test]
fn who_waits_for_a_build_that_dies_goes_on_with_it() {
    let stores = temp();
    let mut first = SAMPLE.writer(stores.path());
    SAMPLE.step(&mut first);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| match SAMPLE.start(stores.path()).unwrap() {
            WriterStart::AlreadyWhole(_) => panic!("nobody finished it"),
            WriterStart::Build(writer) => writer.next_shard().unwrap().index,
        });
        drop(first);
        assert_eq!(waiting.join().unwrap(), 1);
    });
}

/// Set for the processes that the next test starts: the stores folder, and after how many shards to die.
const CHILD_STORES: &str = "STORE_TEST_CHILD_STORES";
const CHILD_SHARDS: &str = "STORE_TEST_CHILD_SHARDS";

#[test]
#[ignore = "is the child process of the next test"]
fn child_process() {
    let Some(stores) = std::env::var_os(CHILD_STORES) else { return };
    let mut left: usize = std::env::var(CHILD_SHARDS).unwrap().parse().unwrap();
    let mut writer = match SAMPLE.start(Path::new(&stores)).unwrap() {
        WriterStart::Build(writer) => writer,
        WriterStart::AlreadyWhole(_) => return,
    };
    loop {
        if left == 0 {
            // As a kill: nothing is dropped, the lock is left to the operating system.
            std::process::abort();
        }
        left -= 1;
        if !SAMPLE.step(&mut writer) {
            break;
        }
    }
    writer.finish(SAMPLE.eval()).unwrap();
}

#[test]
fn processes_that_die_and_processes_that_wait_build_one_store() {
    let expected = files(&SAMPLE.build(temp().path()));
    let stores = temp();
    let start = |shards: usize| {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "store::builds::child_process"])
            .env(CHILD_STORES, stores.path())
            .env(CHILD_SHARDS, shards.to_string())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    for shards in [0, 1, 1] {
        assert!(!start(shards).wait().unwrap().success());
    }
    let done = StoreState::Partial { shards_done: 2, shards: 3 };
    assert_eq!(list(stores.path()).unwrap()[0].state, done);
    let mut children: Vec<_> = (0..3).map(|_| start(10)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let store = Store::open(stores.path(), &SAMPLE.identity().key()).unwrap();
    assert_eq!(files(store.dir()), expected);
}
