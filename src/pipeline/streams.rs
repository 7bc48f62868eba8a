//! The open batches of streams: lines that name a vehicle and no batch join the vehicle's open stream batch, which is
//! created when there is none.

use std::collections::HashMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::domain::batch::{NewBatch, Part};
use crate::domain::clock::now;
use crate::domain::status::BatchStatus;
use crate::metadata::{BatchFilter, Metadata, Refused, pack};
use crate::pipeline::{Pipeline, PipelineError};

/// The label of a stream batch: its value is the stream.
const LABEL: &str = "stream";

/// Open batches that are remembered; beyond, they are looked up again.
const OPEN_MAX: usize = 100_000;

/// Open batches of a vehicle that are looked through.
const LOOKED_MAX: u32 = 1000;

/// Who sends lines: a vehicle with a firmware on a platform.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sender {
    /// The operator's id of the vehicle.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
    /// The hardware platform.
    pub platform: Option<String>,
    /// The firmware. A vehicle with another one begins another batch.
    pub firmware: Option<String>,
}

impl Sender {
    /// The description of its batch of a stream.
    pub fn batch(&self, stream: &str) -> NewBatch {
        let Sender { vehicle_id, vin, platform, firmware } = self.clone();
        let labels = [(LABEL.to_owned(), stream.to_owned())].into();
        NewBatch { vehicle_id, vin, platform, firmware, expected_files: None, labels }
    }
}

/// The open batches of one stream.
pub struct StreamBatches {
    metadata: Metadata,
    pipeline: Pipeline,
    stream: String,
    open: HashMap<Sender, Uuid>,
}

impl StreamBatches {
    /// The batches of a stream; its name is a label of them.
    pub fn new(metadata: Metadata, pipeline: Pipeline, stream: String) -> StreamBatches {
        StreamBatches { metadata, pipeline, stream, open: HashMap::new() }
    }

    /// The open batch of a sender, if it was used before.
    pub fn used(&self, sender: &Sender) -> Option<Uuid> {
        self.open.get(sender).copied()
    }

    /// The open batch of a sender.
    pub async fn open(&mut self, sender: &Sender) -> Result<Uuid, PipelineError> {
        if let Some(batch_id) = self.open.get(sender) {
            return Ok(*batch_id);
        }
        let filter = BatchFilter {
            status: Some(BatchStatus::Pending),
            vin: Some(sender.vin.clone()),
            vehicle_id: Some(sender.vehicle_id.clone()),
            limit: LOOKED_MAX,
            ..BatchFilter::default()
        };
        let found = self.metadata.batches(&filter, 0).await.map_err(|error| PipelineError::Refused(error.into()))?;
        let is_its = |described: &NewBatch| {
            described.labels.get(LABEL) == Some(&self.stream)
                && (&described.platform, &described.firmware) == (&sender.platform, &sender.firmware)
        };
        let batch_id = match found.iter().find(|(batch, _)| is_its(&batch.described)) {
            Some((batch, _)) => batch.id,
            None => self.pipeline.create_batch(sender.batch(&self.stream), None).await?.id,
        };
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(sender.clone(), batch_id);
        Ok(batch_id)
    }

    /// Forgets a batch that is not open any more.
    pub fn forget(&mut self, batch_id: Uuid) {
        self.open.retain(|_, id| *id != batch_id);
    }
}

/// Whether a batch was refused because it is not open any more.
pub fn has_ended(reason: &Refused) -> bool {
    matches!(reason, Refused::NotPending { .. } | Refused::BatchNotFound(_))
}

/// The lines of each file of each batch, in the order of their first lines, so that a history can be repeated. A text
/// without a line feed at its end gets one.
pub fn parts<'t>(texts: impl IntoIterator<Item = (Uuid, &'t str, &'t [u8])>) -> Vec<Part> {
    let (mut joined, mut order) = (HashMap::<(Uuid, &str), Vec<u8>>::new(), Vec::new());
    for (batch_id, file, text) in texts {
        let lines = joined.entry((batch_id, file)).or_insert_with(|| {
            order.push((batch_id, file));
            Vec::new()
        });
        lines.extend_from_slice(text);
        if text.last() != Some(&b'\n') {
            lines.push(b'\n');
        }
    }
    let uploaded_at = now();
    let mut parts = Vec::with_capacity(order.len());
    for (batch_id, name) in order {
        let bytes: Bytes = joined.remove(&(batch_id, name)).unwrap_or_default().into();
        parts.push(Part { batch_id, name: name.to_owned(), packed: pack(&bytes), bytes, uploaded_at });
    }
    parts
}
