//! The sequencer and the recovery, over stores in memory.

use argus_sinks::LakeState;
use futures::poll;
use tokio::join;

use super::harness::{Disk, Parts, described, part};
use super::recovery::RecoveryError;
use super::*;

const VIN: &str = "WVWZZZ1JZXW000001";
const OTHER_VIN: &str = "WVWZZZ1JZXW000002";
const LINE: &str = "2026-03-01 10:15:30 ERROR ota: E_FAIL\n";
const OCCURRENCES: &str = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM error_counts";

/// Sends requests before the sequencer runs, so that one round gets all of them, and awaits the answers.
macro_rules! in_one_round {
    ($parts:ident, $($request:expr),+ $(,)?) => {{
        let pipeline = $parts.pipeline.clone();
        let mut requests = std::pin::pin!(async { join!($($request(&pipeline)),+) });
        assert!(poll!(&mut requests).is_pending());
        $parts.run();
        requests.await
    }};
}

#[tokio::test]
async fn requests_that_wait_together_share_an_epoch_and_the_next_one_gets_the_next() {
    let disk = Disk::new();
    let mut parts = Parts::open(&disk).await.expect("opens");
    let create = async |pipeline: &Pipeline| pipeline.create_batch(described(VIN), None).await.expect("creates").epoch;
    assert_eq!(in_one_round!(parts, create, create, create), (1, 1, 1));
    assert_eq!(create(&parts.pipeline).await, 2);
}

#[tokio::test]
async fn a_change_that_follows_the_completion_of_its_batch_is_refused_and_others_are_done() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.crash().await;
    let mut parts = Parts::open(&disk).await.expect("opens");
    let (completed, appended, created) = in_one_round!(
        parts,
        async |pipeline: &Pipeline| pipeline.complete(batch).await,
        async |pipeline: &Pipeline| pipeline.append(part(batch, "a.log", LINE), None, None).await,
        async |pipeline: &Pipeline| pipeline.create_batch(described(OTHER_VIN), None).await,
    );
    assert_eq!(completed.expect("completes").epoch, 2);
    assert!(matches!(appended, Err(PipelineError::Refused(_))));
    assert_eq!(created.expect("creates").epoch, 3);
}

#[tokio::test]
async fn a_completed_batch_is_loaded_before_it_changes_and_its_requests_stay_in_order() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.upload(batch, "a.log", LINE).await.expect("accepts");
    parts.pipeline.complete(batch).await.expect("completes");
    parts.crash().await;
    let mut parts = Parts::open(&disk).await.expect("opens");
    assert!(parts.held.is_empty(), "a completed batch is not loaded");
    let (reopened, appended, deleted) = in_one_round!(
        parts,
        async |pipeline: &Pipeline| pipeline.reopen(batch).await,
        async |pipeline: &Pipeline| pipeline.append(part(batch, "a.log", LINE), None, None).await,
        async |pipeline: &Pipeline| pipeline.delete_file(batch, "b.log".to_owned()).await,
    );
    reopened.expect("reopens");
    let epoch = appended.expect("is pending again").receipt().epoch;
    assert!(matches!(deleted, Err(PipelineError::Refused(_))), "there is no such file");
    assert_eq!(parts.number(epoch, OCCURRENCES).await, 2);
}

#[tokio::test]
async fn records_of_a_batch_that_is_not_loaded_are_refused_with_its_id_until_it_is() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.commit().await;
    parts.crash().await;
    let parts = Parts::start(&disk).await;
    let consume = || parts.pipeline.consume(vec![part(batch, "a.log", LINE)], Vec::new());
    assert!(matches!(consume().await, Err(PipelineError::NotLoaded(ids)) if ids == [batch]));
    parts.pipeline.load(batch).await.expect("loads");
    assert!(consume().await.expect("is loaded").is_none());
}

#[tokio::test]
async fn a_round_that_cannot_be_stored_is_refused_and_leaves_no_epoch_and_the_next_one_works() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    disk.run("CREATE TRIGGER refuse BEFORE INSERT ON journal BEGIN SELECT RAISE(ABORT, 'injected'); END").await;
    let upload = parts.upload(batch, "a.log", LINE).await;
    assert!(matches!(upload, Err(PipelineError::NotDurable(_))), "{upload:?}");
    disk.run("DROP TRIGGER refuse").await;
    let again = parts.upload(batch, "a.log", LINE).await.expect("accepts");
    assert_eq!(again.receipt().epoch, 2, "the refused round used no epoch");
    assert_eq!(parts.number(2, OCCURRENCES).await, 1);
}

#[tokio::test]
async fn a_sequencer_that_is_closed_answers_what_waits_and_takes_nothing_more() {
    let disk = Disk::new();
    let mut parts = Parts::open(&disk).await.expect("opens");
    let pipeline = parts.pipeline.clone();
    let mut created = std::pin::pin!(pipeline.create_batch(described(VIN), None));
    assert!(poll!(&mut created).is_pending());
    parts.run();
    parts.close().await.expect("ends");
    assert_eq!(created.await.expect("was sent before").epoch, 1);
    let late = parts.pipeline.create_batch(described(VIN), None).await;
    assert!(matches!(late, Err(PipelineError::Stopping)));
}

#[tokio::test]
async fn a_dropped_upload_is_reclaimed_and_a_refused_one_too() {
    let disk = Disk::new();
    let mut parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.pipeline.complete(batch).await.expect("completes");
    let refused = parts.upload(batch, "a.log", LINE).await;
    assert!(matches!(refused, Err(PipelineError::Refused(_))));
    let (of, versions) = parts.reclaimer.next().await.expect("the claim was dropped");
    assert_eq!(of, batch);
    assert!(parts.claims.is_open(versions.whole_lines));
    parts.reclaimer.discarded(versions);
    assert!(!parts.claims.is_open(versions.whole_lines));
}

#[tokio::test]
async fn epochs_that_the_lake_lacks_are_replayed_at_their_numbers_and_can_be_queried() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.upload(batch, "a.log", &LINE.repeat(3)).await.expect("accepts");
    parts.commit().await;
    parts.pipeline.append(part(batch, "a.log", LINE), None, None).await.expect("appends");
    let replaced = parts.upload(batch, "b.log", LINE).await.expect("accepts").receipt().epoch;
    assert_eq!(parts.number(replaced, OCCURRENCES).await, 5);
    assert_eq!(parts.committed.borrow().epoch, 2);
    parts.crash().await;

    let parts = Parts::start(&disk).await;
    assert_eq!(parts.accepted, replaced);
    assert!(parts.held.contains(&batch), "an open batch that the journal changes is loaded");
    assert_eq!(parts.number(replaced, OCCURRENCES).await, 5);
}

#[tokio::test]
async fn metadata_that_end_before_the_lake_are_refused() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    parts.create(VIN).await;
    parts.commit().await;
    parts.crash().await;
    let older = Disk { store: disk.store, ..Disk::new() };
    let opened = Parts::open(&older).await.map(drop);
    assert!(matches!(opened, Err(RecoveryError::MetadataBehindLake { committed: 1, accepted: 0 })), "{opened:?}");
}

#[tokio::test]
async fn a_lake_that_lacks_what_the_journal_no_longer_has_is_refused() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    parts.create(VIN).await;
    parts.commit().await;
    let lake: LakeState = *parts.committed.borrow();
    let committed = Erased { lake, versions: Vec::new(), pending: Vec::new() };
    parts.pipeline.downgrade().lake_committed(committed).await;
    parts.crash().await;
    let without_lake = Disk { data: disk.data, ..Disk::new() };
    let opened = Parts::open(&without_lake).await.map(drop);
    assert!(matches!(opened, Err(RecoveryError::Gap { committed: 0, epoch: 1 })), "{opened:?}");
}

#[tokio::test]
async fn a_file_whose_bytes_are_missing_after_a_crash_counts_nothing_and_others_are_served() {
    let disk = Disk::new();
    let parts = Parts::start(&disk).await;
    let batch = parts.create(VIN).await;
    parts.upload(batch, "lost.log", LINE).await.expect("accepts");
    let lost = parts.metadata.versions(batch).await.expect("reads");
    let epoch = parts.upload(batch, "kept.log", LINE).await.expect("accepts").receipt().epoch;
    for version in lost {
        parts.raw.delete(batch, version).await.expect("deletes");
    }
    parts.crash().await;
    let parts = Parts::start(&disk).await;
    assert_eq!(parts.number(epoch, OCCURRENCES).await, 1);
}
