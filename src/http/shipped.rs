//! Lines that log shippers send without naming a batch: they join the open batch of their vehicle, and all lines of a
//! request are counted in one epoch.

use std::sync::Arc;

use argus_sinks::Snapshot;
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use crate::app::Service;
use crate::domain::batch::Part;
use crate::http::problem::Problem;
use crate::http::routes::lines::COUNTED_WAIT_MS;
use crate::http::waiting::visible;
use crate::metadata::{Metadata, RefusedPart};
use crate::pipeline::streams::{Sender, StreamBatches, has_ended, parts};
use crate::pipeline::{Pipeline, PipelineError};

/// How often lines are appended again when batches are completed or unloaded meanwhile.
const ATTEMPTS: usize = 10;

/// A line, and where it goes.
pub struct Line {
    /// The vehicle and its firmware.
    pub sender: Sender,
    /// The file of its batch.
    pub file: String,
    /// The line; a line feed at its end may be missing.
    pub text: Vec<u8>,
}

/// The lines of one stream. Clones share its batches.
#[derive(Clone)]
pub struct ShippedLines {
    pipeline: Pipeline,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    streams: Arc<Mutex<StreamBatches>>,
}

impl ShippedLines {
    /// The lines of a stream; its name is the label `stream` of its batches.
    pub fn new(service: &Service, stream: &str) -> ShippedLines {
        let streams = StreamBatches::new(service.metadata.clone(), service.pipeline.clone(), stream.to_owned());
        ShippedLines {
            pipeline: service.pipeline.clone(),
            metadata: service.metadata.clone(),
            snapshots: service.snapshots.clone(),
            streams: Arc::new(Mutex::new(streams)),
        }
    }

    /// Counts lines in one epoch, and returns it. Completes even if the client disconnects.
    pub async fn count(&self, lines: Vec<Line>) -> Result<u64, Problem> {
        let shipped = self.clone();
        let work = tokio::spawn(async move { shipped.append(lines).await });
        work.await.map_err(|error| Problem::internal(&error))?
    }

    async fn append(&self, lines: Vec<Line>) -> Result<u64, Problem> {
        for _ in 0..ATTEMPTS {
            let parts = self.parts(&lines).await?;
            let mut batches: Vec<Uuid> = parts.iter().map(|part| part.batch_id).collect();
            batches.dedup();
            match self.pipeline.consume(parts, Vec::new()).await {
                Ok(None) => return Ok(self.counted(&batches).await),
                Ok(Some(RefusedPart { batch_id, reason, .. })) => {
                    if !has_ended(&reason) {
                        return Err(PipelineError::Refused(reason).into());
                    }
                    self.streams.lock().await.forget(batch_id);
                }
                Err(PipelineError::NotLoaded(missing)) => {
                    for batch_id in missing {
                        match self.pipeline.load(batch_id).await {
                            Err(PipelineError::Refused(reason)) if has_ended(&reason) => {
                                self.streams.lock().await.forget(batch_id);
                            }
                            loaded => loaded?,
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Problem::busy("the batches of the lines are completed faster than lines arrive; retry"))
    }

    /// The lines by batch and file.
    async fn parts(&self, lines: &[Line]) -> Result<Vec<Part>, Problem> {
        let mut streams = self.streams.lock().await;
        let mut texts = Vec::with_capacity(lines.len());
        for line in lines {
            texts.push((streams.open(&line.sender).await?, &*line.file, &*line.text));
        }
        Ok(parts(texts))
    }

    /// Waits until the lines are counted. Returns the epoch that has them. They are durable: no failure from here on may
    /// make the shipper send them again.
    async fn counted(&self, batches: &[Uuid]) -> u64 {
        let mut epoch = 0;
        for batch_id in batches {
            if let Ok(Some(batch)) = self.metadata.batch(*batch_id).await {
                epoch = epoch.max(batch.epoch);
            }
        }
        let _ = visible(&self.snapshots, epoch, COUNTED_WAIT_MS).await;
        epoch
    }
}
