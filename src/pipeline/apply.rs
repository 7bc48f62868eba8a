//! What each request does to a round, and what follows when the round is durable.

use super::request::{Reply, Request};
use super::{PipelineError, now};
use crate::ingest::Claim;
use crate::metadata::{Accepted, MetadataError, Refused, Round};

/// Says how a request ended, once its round is durable or is known not to be.
pub(super) type Answer = Box<dyn FnOnce(Result<(), PipelineError>) + Send>;

/// Applies a request to the round; says how it is answered, where anybody waits for that. The claim of an upload that is
/// taken joins `claims`: it is settled with the round. An error is the round's: nothing of it will be durable.
pub(super) async fn apply(
    round: &mut Round<'_>,
    request: Request,
    claims: &mut Vec<Claim>,
) -> Result<Option<Answer>, MetadataError> {
    Ok(match request {
        Request::CreateBatch { described, key, reply } => {
            let result = round.create_batch(described, key.as_deref(), now()).await;
            Some(answer(reply, result)?)
        }
        Request::AcceptFile { upload, claim, key, reply } => {
            let result = round.accept_file(&upload, key.as_ref()).await;
            // Any other is dropped here, and nothing of it stays.
            if matches!(result, Ok(Accepted::Created(_) | Accepted::Replaced(_))) {
                claims.push(claim);
            }
            Some(answer(reply, result)?)
        }
        Request::RecountFile { upload, claim, version, bytes, reply } => {
            let result = round.recount_file(&upload, version, bytes).await;
            if matches!(result, Ok(true)) {
                claims.push(claim);
            }
            Some(answer(reply, result)?)
        }
        Request::Append { part, offset, key, reply } => {
            let result = round.append(&part, offset, key.as_ref()).await;
            Some(answer(reply, result)?)
        }
        Request::Complete { batch_id, reply } => {
            let result = round.complete(batch_id, now()).await;
            Some(answer(reply, result)?)
        }
        Request::Reopen { batch_id, reply } => {
            let result = round.reopen(batch_id, now()).await;
            Some(answer(reply, result)?)
        }
        Request::DeleteFile { batch_id, name, reply } => {
            let result = round.delete_file(batch_id, &name, now()).await.map(|()| round.epoch());
            Some(answer(reply, result)?)
        }
        Request::DeleteBatch { batch_id, reply } => {
            let result = round.delete_batch(batch_id).await.map(|()| round.epoch());
            Some(answer(reply, result)?)
        }
        Request::Abandon { version } => {
            round.abandon(version);
            None
        }
        Request::LakeCommitted { erased, reply } => {
            round.lake_committed(&erased).await?;
            let told: Answer = Box::new(move |durable: Result<(), PipelineError>| {
                if durable.is_ok() {
                    // Whoever waited may have gone away.
                    let _ = reply.send(());
                }
            });
            Some(told)
        }
        Request::FileFailed { version, failure } => {
            round.file_failed(version, &failure).await?;
            None
        }
        Request::PartsAreStored { version, start, last_start, reply } => {
            let result = round.parts_are_stored(version, start, last_start).await;
            Some(answer(reply, result)?)
        }
        Request::ForgetBefore { keys, past, reply } => {
            let more = round.forget_before(keys, past).await?;
            Some(answer(reply, Ok(more))?)
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
