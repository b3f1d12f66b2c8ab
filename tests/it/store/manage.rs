//! Listing, using and removing stores.

use super::{SAMPLE, Sample, all_rows, files, temp};
use saesweep::store::{Store, StoreError, StoreState, WriterStart, list, remove};
use std::fs;

#[test]
fn a_whole_store_does_not_wait_for_its_users() {
    let stores = temp();
    let store = Store::open_dir(&SAMPLE.build(stores.path())).unwrap();
    let _guard = store.mark_used().unwrap();
    assert!(matches!(SAMPLE.start(stores.path()).unwrap(), WriterStart::AlreadyWhole(_)));
}

#[test]
fn a_store_in_use_is_not_removed() {
    let stores = temp();
    let key = SAMPLE.identity().key();
    let check_refused = || {
        let message = remove(stores.path(), &key).unwrap_err().to_string();
        assert!(message.contains(&key) && message.contains("is in use"), "{message}");
    };
    let mut writer = SAMPLE.writer(stores.path());
    check_refused();
    while SAMPLE.step(&mut writer) {}
    writer.finish(SAMPLE.eval()).unwrap();

    let store = Store::open(stores.path(), &key).unwrap();
    let first = store.mark_used().unwrap();
    let second = Store::open(stores.path(), &key).unwrap().mark_used().unwrap();
    assert!(list(stores.path()).unwrap()[0].in_use);
    drop(first);
    check_refused();
    drop(second);
    let before = all_rows(&store);
    remove(stores.path(), &key).unwrap();
    assert_eq!(fs::read_dir(stores.path()).unwrap().count(), 0);
    assert_eq!(all_rows(&store), before, "an open store outlives its name");
    assert!(matches!(store.mark_used(), Err(StoreError::Missing { .. })));
    assert!(matches!(Store::open(stores.path(), &key), Err(StoreError::Missing { .. })));
    assert!(matches!(remove(stores.path(), &key), Err(StoreError::Missing { .. })));
    assert!(matches!(remove(stores.path(), "../etc"), Err(StoreError::BadKey { .. })));
}

#[test]
fn an_unfinished_build_can_be_removed() {
    let stores = temp();
    let mut writer = SAMPLE.writer(stores.path());
    SAMPLE.step(&mut writer);
    drop(writer);
    remove(stores.path(), &SAMPLE.identity().key()).unwrap();
    assert_eq!(fs::read_dir(stores.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupted_removal_is_shown_and_can_be_repeated() {
    let stores = temp();
    let dir = SAMPLE.build(stores.path());
    fs::rename(&dir, dir.with_extension("removing")).unwrap();
    let infos = list(stores.path()).unwrap();
    assert_eq!(infos[0].state, StoreState::Broken("its removal was interrupted; remove it again".to_owned()));
    remove(stores.path(), &infos[0].key).unwrap();
    assert_eq!(fs::read_dir(stores.path()).unwrap().count(), 0);
}

#[test]
fn the_list_says_what_is_there() {
    let stores = temp();
    assert!(list(&stores.path().join("nowhere")).unwrap().is_empty());
    assert!(list(stores.path()).unwrap().is_empty());

    let whole = SAMPLE;
    let partial = Sample { seed: 8, ..SAMPLE };
    let broken = Sample { seed: 9, ..SAMPLE };
    let dir = whole.build(stores.path());
    partial.step(&mut partial.writer(stores.path()));
    let shard = broken.build(stores.path()).join("train-00001.bin");
    fs::write(&shard, b"short").unwrap();
    fs::create_dir(stores.path().join("notes")).unwrap();

    let infos = list(stores.path()).unwrap();
    assert_eq!(infos.len(), 3);
    let find = |sample: &Sample| infos.iter().find(|info| info.key == sample.identity().key()).unwrap();
    let info = find(&whole);
    assert_eq!((&info.state, info.in_use), (&StoreState::Whole, false));
    assert_eq!(info.bytes, files(&dir).values().map(|bytes| bytes.len() as u64).sum::<u64>());
    let content = info.content.as_ref().unwrap();
    assert_eq!((content.rows, content.width, &content.label), (20, 3, &whole.label()));
    let used = info.last_used.unwrap();
    drop(Store::open_dir(&dir).unwrap().mark_used().unwrap());
    let again = list(stores.path()).unwrap();
    assert!(again.iter().find(|info| info.key == whole.identity().key()).unwrap().last_used.unwrap() >= used);

    assert_eq!(find(&partial).state, StoreState::Partial { shards_done: 1, shards: 3 });
    assert_eq!(find(&partial).content.as_ref().unwrap().rows, 20);
    let StoreState::Broken(reason) = &find(&broken).state else { panic!("{:?}", find(&broken).state) };
    assert!(reason.contains("train-00001.bin` has 5 bytes, expected 48"), "{reason}");
}
