//! Uploads into a raw store in memory and a dataflow whose output the tests read.

use std::collections::BTreeMap;

use argus_dataflow::{CodeLimits, Config, Output, RuleSet};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::mpsc::UnboundedReceiver;
use url::Url;

use super::*;
use crate::storage::Storage;

/// The limit of a body's bytes.
const BODY_MAX: u64 = 100_000;
const LINE: &str = "2026-03-01 10:15:30 ERROR ota: E_FAIL\n";
const OPEN_LINE: &str = "2026-03-01 10:15:31 WARN bms: E_ABORT";

struct Fixture {
    store: Arc<InMemory>,
    ingest: Ingest,
    outputs: UnboundedReceiver<Output>,
    reclaimer: Reclaimer,
    _data: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let store = Arc::new(InMemory::new());
        let raw = RawStore::new(&Storage {
            store: Arc::clone(&store) as Arc<dyn ObjectStore>,
            lake: Url::parse("memory:///lake/").expect("a URL"),
            raw: Path::from("raw"),
            part_bytes: 1 << 10,
            directory: None,
            unfinished: None,
        });
        let (dataflow, outputs) = Dataflow::start(Config {
            workers: 1,
            rules: RuleSet::built_in().expect("the built-in rules"),
            first_epoch: 1,
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            occurrences: true,
            limits: CodeLimits::default(),
            scans_only: false,
        })
        .expect("starts");
        let (claims, reclaimer) = Claims::new();
        let data = tempfile::tempdir().expect("a temporary folder");
        let ingest = Ingest::new(dataflow, raw, claims, DiskSpace::of(data.path()), 4096, BODY_MAX);
        Fixture { store, ingest, outputs, reclaimer, _data: data }
    }

    /// Sends a body in two pieces, with this end.
    async fn send(
        &self,
        body: &[u8],
        encoding: Encoding,
        end: Option<BodyPart>,
    ) -> Result<(StoredUpload, Claim), IngestError> {
        let (sender, stored) = self.ingest.begin(Uuid::nil(), "a.log".to_owned(), encoding, 0);
        let (first, second) = body.split_at(body.len() / 2);
        for piece in [first, second] {
            // A body that is refused early is not read to its end.
            let _ = sender.send(BodyPart::Bytes(Bytes::copy_from_slice(piece))).await;
        }
        if let Some(end) = end {
            let _ = sender.send(end).await;
        }
        drop(sender);
        stored.await
    }

    async fn upload(&self, body: &[u8], encoding: Encoding) -> Result<(StoredUpload, Claim), IngestError> {
        self.send(body, encoding, Some(BodyPart::End)).await
    }

    /// The codes that the dataflow has found so far, by version.
    async fn codes(&mut self) -> BTreeMap<VersionId, Vec<String>> {
        // All blocks that were inserted are scanned when the outputs end.
        self.ingest.dataflow.advance(1, Vec::new()).expect("runs");
        let mut codes: BTreeMap<_, Vec<String>> = BTreeMap::new();
        loop {
            match self.outputs.recv().await.expect("the epoch closes") {
                Output::Closed(_) | Output::Counted(..) => return codes,
                Output::Scanned(block) => {
                    let found = block.occurrences.iter().map(|occurrence| occurrence.code.to_string());
                    codes.entry(block.origin.version).or_default().extend(found);
                }
            }
        }
    }

    async fn objects(&self) -> Vec<Path> {
        self.store.list(None).map_ok(|object| object.location).try_collect().await.expect("lists")
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(text).expect("writes to memory");
    encoder.finish().expect("writes to memory")
}

#[tokio::test]
async fn an_upload_is_the_same_file_however_it_is_compressed() {
    let text = format!("{}{OPEN_LINE}", LINE.repeat(500));
    let zstd = zstd::encode_all(text.as_bytes(), 1).expect("compresses");
    let (gzip, plain) = (gzip(text.as_bytes()), text.as_bytes().to_vec());
    let bodies = [
        (plain, Encoding::Identity, Encoding::Zstd),
        (gzip, Encoding::Gzip, Encoding::Gzip),
        (zstd, Encoding::Zstd, Encoding::Zstd),
    ];
    for (body, sent_as, stored_as) in bodies {
        let mut fixture = Fixture::new();
        let (upload, claim) = fixture.upload(&body, sent_as).await.expect("stores");
        assert_eq!(upload.encoding, stored_as);
        assert_eq!((upload.bytes, upload.lines, upload.binary), (text.len() as u64, 500, false));
        let mut digest = Digest::default();
        digest.update(text.as_bytes());
        assert_eq!(upload.digest, digest);
        let open = upload.versions().open_line;
        let codes = fixture.codes().await;
        assert_eq!(codes[&upload.version], vec!["E_FAIL"; 500]);
        assert_eq!(codes[&open], ["E_ABORT"]);
        claim.accepted();
    }
}

#[tokio::test]
async fn what_is_replayed_is_what_was_inserted_but_for_the_open_line() {
    let mut fixture = Fixture::new();
    let text = format!("{}{OPEN_LINE}", LINE.repeat(500));
    let (upload, claim) = fixture.upload(text.as_bytes(), Encoding::Identity).await.expect("stores");
    claim.accepted();
    let file = Origin { batch_id: Uuid::nil(), file: "a.log".to_owned(), version: VersionId::new(), uploaded_at: 0 };
    // Another version, with the bytes of the upload.
    let stored = fixture.ingest.raw.path(Uuid::nil(), upload.version);
    let copy = fixture.ingest.raw.path(Uuid::nil(), file.version);
    fixture.store.copy(&stored, &copy).await.expect("copies");
    let (ingest, origin) = (fixture.ingest.clone(), Arc::new(file));
    let again = Arc::clone(&origin);
    tokio::task::spawn_blocking(move || ingest.replay(&again, Encoding::Zstd)).await.expect("runs").expect("replays");
    let codes = fixture.codes().await;
    assert_eq!(codes[&origin.version], codes[&upload.version]);
}

/// A name, a body that is not stored, its encoding, its end, and whether an error is the expected one.
type Case<'a> = (&'a str, &'a [u8], Encoding, Option<BodyPart>, fn(&IngestError) -> bool);

#[tokio::test]
async fn an_upload_that_is_not_stored_says_why_and_leaves_its_claim_to_the_reclaimer() {
    let long = LINE.repeat(4000);
    let zeros = zstd::encode_all(&vec![b' '; 80 << 20][..], 1).expect("compresses");
    let gzip = gzip(LINE.repeat(100).as_bytes());
    let half = &gzip[..gzip.len() / 2];
    let interrupted = || Some(BodyPart::Interrupted(Interrupted::Stopping));
    let cases: [Case<'_>; 6] = [
        ("too long", long.as_bytes(), Encoding::Identity, Some(BodyPart::End), |error| {
            matches!(error, IngestError::TooLong { limit: BODY_MAX })
        }),
        ("a bomb", &zeros, Encoding::Zstd, Some(BodyPart::End), |error| matches!(error, IngestError::ExpandsTooMuch)),
        ("cut in half", half, Encoding::Gzip, Some(BodyPart::End), |error| matches!(error, IngestError::Corrupt(_))),
        ("not gzip", LINE.as_bytes(), Encoding::Gzip, Some(BodyPart::End), |error| {
            matches!(error, IngestError::Corrupt(_))
        }),
        ("interrupted", LINE.as_bytes(), Encoding::Identity, interrupted(), |error| {
            matches!(error, IngestError::Interrupted(Interrupted::Stopping))
        }),
        ("disconnected", LINE.as_bytes(), Encoding::Identity, None, |error| {
            matches!(error, IngestError::Interrupted(Interrupted::Connection(_)))
        }),
    ];
    let mut fixture = Fixture::new();
    for (name, body, encoding, end, is_expected) in cases {
        let error = fixture.send(body, encoding, end).await.map(drop).expect_err(name);
        assert!(is_expected(&error), "{name}: {error:?}");
        let (batch_id, versions) = fixture.reclaimer.next().await.expect("the claim was dropped");
        assert_eq!(batch_id, Uuid::nil());
        assert!(fixture.ingest.claims.is_open(versions.whole_lines), "its bytes may still be there");
        fixture.reclaimer.discarded(versions);
        assert!(fixture.objects().await.is_empty(), "{name}: an object is visible only when it is complete");
    }
}
