//! The scans of the uploads that arrive at a process that follows: their codes, until the upload is handed to the leader.
//!
//! The blocks of an upload are scanned by this process. What the leader needs of them are the partial counts, and the
//! occurrences, which are in memory, or in a temporary file when there are many.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_dataflow::{CodeLimits, Dataflow, DataflowStopped, Output, PartialCounts, VersionId};
use argus_sinks::occurrences::{self, OccurrencesError};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The occurrences of a version that are in memory (1 MiB); more are written to a file.
const MEMORY_BYTES: usize = 1 << 20;

/// Why the scan of an upload cannot be handed on.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum ScanError {
    #[error("the server is stopping")]
    Stopping(#[from] DataflowStopped),
    #[error("the occurrences of an upload cannot be written to a temporary file")]
    File(#[from] io::Error),
    #[error("the occurrences of an upload cannot be written")]
    Rows(#[from] OccurrencesError),
}

/// What is known of a version.
#[derive(Default)]
pub struct Scan {
    /// Its partial counts.
    pub counts: PartialCounts,
    /// Frames of occurrences that are in no file.
    pub frames: Vec<u8>,
    /// Frames of occurrences before them.
    pub file: Option<File>,
    /// The occurrences that could not be written.
    failure: Option<ScanError>,
}

/// The scans of uploads. Clones share them.
#[derive(Clone)]
pub struct Scans {
    dataflow: Dataflow,
    open: Arc<Mutex<HashMap<VersionId, Scan>>>,
    /// The last epoch of the scans: one for each upload that ends.
    epoch: Arc<Mutex<u64>>,
    closed: watch::Receiver<u64>,
}

impl Scans {
    /// Collects the output of a dataflow that only scans, until it stops. Temporary files are in `folder`.
    pub fn start(dataflow: Dataflow, outputs: UnboundedReceiver<Output>, folder: PathBuf) -> (Scans, JoinHandle<()>) {
        let open: Arc<Mutex<HashMap<VersionId, Scan>>> = Arc::default();
        let (closed_in, closed) = watch::channel(0);
        let scans = Scans { dataflow, open: Arc::clone(&open), epoch: Arc::default(), closed };
        // Files are written by this thread.
        let collecting = tokio::task::spawn_blocking(move || collect(&open, outputs, &closed_in, &folder));
        (scans, collecting)
    }

    /// The scan of a version, all of whose blocks are inserted.
    pub async fn finish(&self, versions: [VersionId; 2]) -> Result<[Scan; 2], ScanError> {
        let epoch = {
            let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
            *epoch += 1;
            self.dataflow.advance(*epoch, Vec::new())?;
            *epoch
        };
        let mut closed = self.closed.clone();
        closed.wait_for(|closed| *closed >= epoch).await.map_err(|_| DataflowStopped)?;
        let scans = versions.map(|version| lock(&self.open).remove(&version).unwrap_or_default());
        let [first, second] = scans;
        Ok([first.checked()?, second.checked()?])
    }

    /// Forgets the scan of an upload that has failed. Blocks of it may still be scanned: they are forgotten too.
    pub async fn abandon(&self, versions: [VersionId; 2]) {
        // If the dataflow has stopped, there is nothing to forget.
        let _ = self.finish(versions).await;
    }
}

impl Scan {
    fn checked(self) -> Result<Scan, ScanError> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self),
        }
    }

    fn add(&mut self, frame: &[u8], folder: &Path) -> io::Result<()> {
        self.frames.extend_from_slice(frame);
        if self.frames.len() > MEMORY_BYTES {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(folder)?),
            };
            file.write_all(&self.frames)?;
            self.frames = Vec::new();
        }
        Ok(())
    }

    /// The frames in the file, from the beginning.
    pub fn rewound(&mut self) -> io::Result<Option<File>> {
        let Some(mut file) = self.file.take() else { return Ok(None) };
        file.seek(SeekFrom::Start(0))?;
        Ok(Some(file))
    }
}

fn collect(
    open: &Mutex<HashMap<VersionId, Scan>>,
    mut outputs: UnboundedReceiver<Output>,
    closed: &watch::Sender<u64>,
    folder: &Path,
) {
    while let Some(output) = outputs.blocking_recv() {
        match output {
            Output::Scanned(block) => {
                let version = block.origin.version;
                let frame = occurrences::frame(&block);
                let mut open = lock(open);
                let scan = open.entry(version).or_default();
                if scan.failure.is_none() {
                    let added = frame.map_err(ScanError::from).and_then(|frame| Ok(scan.add(&frame, folder)?));
                    scan.failure = added.err();
                }
            }
            Output::Counted(version, counts) => {
                lock(open).entry(version).or_default().counts.merge(counts, CodeLimits::default());
            }
            Output::Closed(epoch) => drop(closed.send_replace(epoch.epoch)),
        }
    }
}

fn lock(open: &Mutex<HashMap<VersionId, Scan>>) -> MutexGuard<'_, HashMap<VersionId, Scan>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
