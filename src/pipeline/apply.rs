//! What each request does to a round, and what follows when the round is durable.

use tokio::sync::oneshot;
use uuid::Uuid;

use super::request::{Reply, Request};
use super::{Gathered, PipelineError, now};
use crate::events::EventKind;
use crate::metadata::{MetadataError, Refused, Round};
use crate::status::BatchEvent;

/// Says how a request ended, once its round is durable or is known not to be.
pub(super) type Answer = Box<dyn FnOnce(Result<(), PipelineError>) + Send>;

/// What a request leads to when its round is durable.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) answer: Option<Answer>,
    pub(super) follow_up: Option<Request>,
    pub(super) committed: Option<u64>,
    /// Told when what is committed has been forgotten.
    pub(super) forgotten: Option<oneshot::Sender<()>>,
}

/// Applies a request to the round. An error is the round's: nothing of it will be durable.
pub(super) async fn apply(round: &mut Round<'_>, request: Request) -> Result<Outcome, MetadataError> {
    Ok(match request {
        Request::CreateBatch { described, key, reply } => {
            let result = round.create_batch(described, key.as_deref(), now()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::AcceptFile { upload, key, reply } => {
            let result = round.accept_file(&upload, key.as_ref()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Append { part, offset, key, reply } => {
            let result = round.append(&part, offset, key.as_ref()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Complete { batch_id, reply } => {
            let result = round.complete(batch_id, now()).await;
            let follow_up = result.is_ok().then_some(Request::Scattered { batch_id });
            Outcome { answer: Some(answer(reply, result)?), follow_up, ..Outcome::default() }
        }
        Request::Reopen { batch_id, reply } => {
            let result = round.reopen(batch_id, now()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::DeleteFile { batch_id, name, reply } => {
            let result = round.delete_file(batch_id, &name, now()).await.map(|()| round.epoch());
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::DeleteBatch { batch_id, reply } => {
            let result = round.delete_batch(batch_id).await.map(|()| round.epoch());
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Abandon { version } => {
            round.abandon(version);
            Outcome::default()
        }
        Request::Scattered { batch_id } => {
            let events = [
                (BatchEvent::ScatterBegan, None),
                (BatchEvent::AllFilesScattered, Some(EventKind::AllFilesScattered)),
                (BatchEvent::GatherBegan, None),
            ];
            pass(round, batch_id, &events).await?;
            Outcome::default()
        }
        Request::Parsed { batch_id, file, generation } => {
            round.parsed(batch_id, file, generation, now()).await?;
            Outcome::default()
        }
        Request::Gathered { batch_id, totals: Gathered { total_lines, error_codes } } => {
            // Nothing makes a diagnosis yet, so it is done, without one, at once.
            let events = [
                (BatchEvent::AllFilesGathered, Some(EventKind::AllFilesGathered { total_lines, error_codes })),
                (BatchEvent::DiagnosisBegan, None),
                (BatchEvent::DiagnosisCompleted, None),
            ];
            pass(round, batch_id, &events).await?;
            Outcome::default()
        }
        Request::Committed { epoch, forgotten } => Outcome { committed: Some(epoch), forgotten, ..Outcome::default() },
        Request::PartsAreStored { version, start, last_start, reply } => {
            let result = round.parts_are_stored(version, start, last_start).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::ForgetBefore { keys, epochs } => {
            round.forget_before(keys, epochs).await?;
            Outcome::default()
        }
    })
}

fn answer<T: Send + 'static>(reply: Reply<T>, result: Result<T, Refused>) -> Result<Answer, MetadataError> {
    let result = match result {
        Err(Refused::Metadata(error)) => return Err(error),
        result => result.map_err(PipelineError::from),
    };
    Ok(Box::new(move |durable| {
        // Whoever asked may have gone away; what happened has happened.
        let _ = reply.send(durable.and(result));
    }))
}

async fn pass(
    round: &mut Round<'_>,
    batch_id: Uuid,
    events: &[(BatchEvent, Option<EventKind>)],
) -> Result<(), MetadataError> {
    match round.pass(batch_id, events, now()).await {
        Ok(()) => Ok(()),
        Err(Refused::Metadata(error)) => Err(error),
        Err(refused) => {
            tracing::warn!(batch.id = %batch_id, %refused, "a batch did not move on");
            Ok(())
        }
    }
}
