//! A client: what it sends, what it learns from the answer, and what the model becomes by it.

use bytes::Bytes;
use uuid::Uuid;

use super::model::{Lines, ModelBatch, NAMES, lines, text};
use super::random::Random;
use crate::app::Service;
use crate::domain::batch::{Encoding, Part};
use crate::domain::clock::now;
use crate::ingest::BodyPart;
use crate::ingest::slots::Interrupted;
use crate::metadata::pack;
use crate::pipeline::PipelineError;

/// A request for a batch.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Put(&'static str, Lines),
    /// An upload that the client interrupts.
    Interrupt(&'static str, Lines),
    Append(&'static str, Lines),
    DeleteFile(&'static str),
    Complete,
    Reopen,
    Delete,
}

/// What a client knows after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It happened, at this epoch.
    Done(u64),
    /// It was refused: it is not possible in the batch's state.
    Refused,
    /// It failed and did not happen.
    Failed,
    /// It may or may not have happened.
    Unknown,
}

impl Operation {
    pub(super) fn random(random: &mut Random) -> Operation {
        let name = random.pick(&NAMES);
        match random.below(14) {
            0..=4 => Operation::Put(name, lines(random)),
            5 => Operation::Interrupt(name, lines(random)),
            6..=8 => Operation::Append(name, lines(random)),
            9 => Operation::DeleteFile(name),
            10 | 11 => Operation::Complete,
            12 => Operation::Reopen,
            _ => Operation::Delete,
        }
    }

    /// The state after the request, `None` for a deleted batch; an error if the request is not possible.
    pub(super) fn effect(&self, batch: &ModelBatch) -> Result<Option<ModelBatch>, ()> {
        let mut after = batch.clone();
        match self {
            Operation::Complete => after.is_completed = true,
            Operation::Reopen => after.is_completed = false,
            Operation::Delete => return Ok(None),
            _ if batch.is_completed => return Err(()),
            Operation::Put(name, lines) => drop(after.files.insert(name, lines.clone())),
            Operation::Interrupt(..) => {}
            Operation::Append(name, lines) => after.files.entry(name).or_default().extend(lines),
            Operation::DeleteFile(name) => drop(after.files.remove(name).ok_or(())?),
        }
        Ok(Some(after))
    }
}

pub(super) fn outcome(result: Result<u64, PipelineError>) -> Outcome {
    match result {
        Ok(epoch) => Outcome::Done(epoch),
        Err(PipelineError::Refused(_)) => Outcome::Refused,
        Err(PipelineError::NotDurable(_) | PipelineError::Busy | PipelineError::NotLoaded(_)) => Outcome::Failed,
        Err(PipelineError::Indeterminate(_) | PipelineError::Stopping) => Outcome::Unknown,
    }
}

pub(super) async fn request(service: &Service, batch_id: Uuid, operation: &Operation) -> Outcome {
    let pipeline = &service.pipeline;
    match operation {
        Operation::Put(name, lines) | Operation::Interrupt(name, lines) => {
            let (body, stored) = service.ingest.begin(batch_id, (*name).to_owned(), Encoding::Identity, now());
            let text = Bytes::from(text(lines));
            let end = match operation {
                Operation::Interrupt(..) => BodyPart::Interrupted(Interrupted::Stopping),
                _ => BodyPart::End,
            };
            // If the store fails, the channel is closed, and `stored` has the reason.
            let _ = body.send(BodyPart::Bytes(text)).await;
            let _ = body.send(end).await;
            drop(body);
            match stored.await {
                Err(_) => Outcome::Failed,
                Ok((upload, claim)) => {
                    let accepted = pipeline.accept_file(upload, claim, None).await;
                    outcome(accepted.map(|accepted| accepted.receipt().epoch))
                }
            }
        }
        Operation::Append(name, lines) => {
            let bytes: Bytes = text(lines).into();
            let part = Part { batch_id, name: (*name).to_owned(), packed: pack(&bytes), bytes, uploaded_at: now() };
            let accepted = pipeline.append(part, None, None).await;
            outcome(accepted.map(|accepted| accepted.receipt().epoch))
        }
        Operation::DeleteFile(name) => outcome(pipeline.delete_file(batch_id, (*name).to_owned()).await),
        Operation::Complete => outcome(pipeline.complete(batch_id).await.map(|batch| batch.epoch)),
        Operation::Reopen => outcome(pipeline.reopen(batch_id).await.map(|batch| batch.epoch)),
        Operation::Delete => outcome(pipeline.delete_batch(batch_id).await),
    }
}
