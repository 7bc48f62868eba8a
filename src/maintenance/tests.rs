//! Maintenance over stores in memory: what it merges, deletes and keeps.

use argus_dataflow::VersionId;
use argus_sinks::Table;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use uuid::Uuid;

use super::*;
use crate::domain::batch::Versions;
use crate::pipeline::harness::{Disk, Parts};

const VIN: &str = "WVWZZZ1JZXW000001";
const LINE: &str = "2026-03-01 10:15:30 ERROR ota: E_FAIL\n";
const OCCURRENCES: &str = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM error_counts";

fn maintainer(disk: &Disk, parts: &Parts) -> Maintainer {
    let data = disk.data.path().to_owned();
    let pipeline = parts.pipeline.downgrade();
    let (metadata, raw, committed) = (parts.metadata.clone(), parts.raw.clone(), parts.committed.clone());
    let store = disk.storage().store;
    Maintainer {
        data: data.clone(),
        store: Arc::clone(&store),
        maintenance: parts.maintenance.clone(),
        snapshots: parts.snapshots.clone(),
        committed: committed.clone(),
        metadata: metadata.clone(),
        pipeline: pipeline.clone(),
        raw: raw.clone(),
        resumable: ResumableUploads::open(&data).expect("opens"),
        retention: Duration::ZERO,
        every: Duration::ZERO,
        erasure: Erasure::new(metadata.clone(), raw.clone(), pipeline, committed, data),
        orphans: Orphans {
            store,
            directory: None,
            raw,
            claims: parts.claims.clone(),
            metadata,
            term: 0,
            unnamed: Vec::new(),
            unnamed_from: Instant::now(),
            uploads: None,
            unfinished: Vec::new(),
            looked: None,
        },
        leftovers: Leftovers::default(),
    }
}

async fn run(maintainer: &mut Maintainer, thoroughness: Thoroughness) -> Done {
    let done = maintainer.run(thoroughness).await;
    assert!(done.failures.is_empty(), "{done:?}");
    done
}

/// The objects of the raw store.
async fn raw_objects(parts: &Parts) -> Vec<Path> {
    parts.raw.list().map_ok(|object| object.location).try_collect().await.expect("lists")
}

fn files(parts: &Parts, table: Table) -> usize {
    parts.snapshots.borrow().table(table).committed.len()
}

#[tokio::test]
async fn small_files_become_one_and_every_count_stays() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    let mut epoch = 0;
    for file in 0..10 {
        let name = format!("{}.log", file % 4);
        epoch = parts.upload(batch, &name, &LINE.repeat(1 + file)).await.expect("accepts").receipt().epoch;
        parts.commit().await;
    }
    assert_eq!((files(&parts, Table::ErrorCounts), files(&parts, Table::Files)), (10, 10));
    // The last content of the four names.
    let expected = 7 + 8 + 9 + 10;
    assert_eq!(parts.number(epoch, OCCURRENCES).await, expected);
    let done = run(&mut maintainer(&disk, &parts), Thoroughness::Full).await;
    assert!(done.files_replaced >= 20, "{done:?}");
    assert_eq!((files(&parts, Table::ErrorCounts), files(&parts, Table::Files)), (1, 1));
    assert_eq!(parts.number(epoch, OCCURRENCES).await, expected);
    assert_eq!(raw_objects(&parts).await.len(), 4, "replaced bytes are erased");
}

#[tokio::test]
async fn a_scheduled_run_leaves_few_small_files_as_they_are() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    for name in ["a.log", "b.log"] {
        parts.upload(batch, name, LINE).await.expect("accepts");
        parts.commit().await;
    }
    let done = run(&mut maintainer(&disk, &parts), Thoroughness::Scheduled).await;
    assert_eq!((done.files_replaced, files(&parts, Table::ErrorCounts)), (0, 2));
}

#[tokio::test]
async fn a_deleted_batch_leaves_no_row_in_any_file_and_no_bytes() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let (deleted, kept) = (parts.create(VIN).await, parts.create("WVWZZZ1JZXW000002").await);
    for batch in [deleted, kept] {
        parts.upload(batch, "a.log", LINE).await.expect("accepts");
    }
    let epoch = parts.pipeline.delete_batch(deleted).await.expect("deletes");
    parts.commit().await;
    let mut maintainer = maintainer(&disk, &parts);
    run(&mut maintainer, Thoroughness::Full).await;
    assert_eq!(parts.number(epoch, OCCURRENCES).await, 1);
    let raw = raw_objects(&parts).await;
    assert!(!raw.is_empty() && raw.iter().all(|object| object.as_ref().contains(&kept.to_string())), "{raw:?}");
    // No file of the tables names the batch any more: rows are sorted by its id, and files know their least and greatest.
    let snapshot = Arc::clone(&parts.snapshots.borrow());
    let has = |batch: Uuid| {
        let id = batch.to_string();
        [Table::Errors, Table::ErrorCounts, Table::Files]
            .map(|table| snapshot.table(table).committed.iter().any(|file| file.may_hold(&id)))
    };
    assert_eq!((has(deleted), has(kept)), ([false; 3], [true; 3]));
}

#[tokio::test]
async fn an_upload_under_way_is_no_orphan_and_what_nobody_claims_is_one() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    let write = async |version: VersionId| {
        let mut writer = parts.raw.writer(&tokio::runtime::Handle::current(), batch, version);
        let write = move || std::io::Write::write_all(&mut writer, LINE.as_bytes()).and_then(|()| writer.finish());
        tokio::task::spawn_blocking(write).await.expect("runs").expect("writes");
    };
    let versions = Versions { whole_lines: VersionId::new(), open_line: VersionId::new() };
    let claim = parts.claims.claim(batch, versions);
    let orphan = VersionId::new();
    write(versions.whole_lines).await;
    write(orphan).await;
    let done = run(&mut maintainer(&disk, &parts), Thoroughness::Scheduled).await;
    assert_eq!(done.files_deleted, 1);
    let left = raw_objects(&parts).await;
    assert_eq!(left.iter().filter_map(RawStore::named).collect::<Vec<_>>(), [(batch, versions.whole_lines)]);
    drop(claim);
}

#[tokio::test]
async fn nothing_is_deleted_while_a_backup_is_taken() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.upload(batch, "a.log", LINE).await.expect("accepts");
    parts.pipeline.delete_file(batch, "a.log".to_owned()).await.expect("deletes");
    let hold = data_dir::backup_folder(disk.data.path()).expect("holds");
    parts.commit().await;
    let mut maintainer = maintainer(&disk, &parts);
    let held = maintainer.run(Thoroughness::Full).await;
    assert_eq!(held.failures, ["deleted versions remain in the raw store: 1 versions"]);
    assert_eq!(raw_objects(&parts).await.len(), 1);
    drop(hold);
    run(&mut maintainer, Thoroughness::Full).await;
    assert!(raw_objects(&parts).await.is_empty());
}

#[tokio::test]
async fn a_step_that_fails_is_reported_and_the_others_run() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    let epoch = parts.upload(batch, "a.log", LINE).await.expect("accepts").receipt().epoch;
    parts.commit().await;
    parts.upload(batch, "b.log", LINE).await.expect("accepts");
    parts.commit().await;
    // A file of a table is damaged.
    let damaged = parts.snapshots.borrow().table(Table::ErrorCounts).committed[0].path.clone();
    let whole = disk.store.get(&damaged).await.expect("is there").bytes().await.expect("reads");
    disk.store.put(&damaged, "damaged".into()).await.expect("puts");
    let done = maintainer(&disk, &parts).run(Thoroughness::Full).await;
    assert!(done.files_skipped > 0, "{done:?}");
    assert_eq!(files(&parts, Table::Files), 1, "the other tables are compacted");
    disk.store.put(&damaged, whole.into()).await.expect("puts");
    run(&mut maintainer(&disk, &parts), Thoroughness::Full).await;
    assert_eq!(parts.number(epoch + 1, OCCURRENCES).await, 2);
}
