//! Applies requests to a round, and answers them when the round is durable.

use super::PipelineError;
use super::request::{Reply, Request};
use crate::domain::batch::Accepted;
use crate::domain::clock::now;
use crate::ingest::Claim;
use crate::metadata::{MetadataError, Refused, Round};

/// Sends the answer to a request, after the commit of its round succeeded or failed.
pub(super) type Answer = Box<dyn FnOnce(Result<(), PipelineError>) + Send>;

/// Applies a request to the round. Returns its answer, if anybody waits for one. The claim of an accepted upload is
/// added to `claims`, and is resolved with the round. After an error the whole round must be dropped.
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
            // Otherwise the claim is dropped here, and the upload is discarded.
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
        Request::Consume { parts, consumed, reply } => {
            let result = round.consume(&parts, &consumed).await;
            Some(answer(reply, result)?)
        }
        // A pending batch is loaded when its requests are applied.
        Request::Load { batch_id, reply } => {
            let result = round.pending(batch_id).await;
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
        Request::PutCatalog { entries, reply } => {
            let result = round.put_catalog(&entries).await;
            Some(answer(reply, result)?)
        }
        Request::DeleteCatalog { code, platform, firmware, reply } => {
            let result = round.delete_catalog(&code, &platform, &firmware).await;
            Some(answer(reply, result)?)
        }
        Request::PutDocuments { documents, event, reply } => {
            let result = round.put_documents(&documents, event.as_ref()).await;
            Some(answer(reply, result)?)
        }
        Request::DeleteDocument { kind, id, reply } => {
            let result = round.delete_document(kind, &id).await;
            Some(answer(reply, result)?)
        }
        Request::Abandon { version } => {
            round.abandon(version);
            None
        }
        Request::LakeCommitted { erased, reply } => {
            round.lake_committed(&erased).await?;
            let answer: Answer = Box::new(move |durable: Result<(), PipelineError>| {
                if durable.is_ok() {
                    // The receiver may have been dropped.
                    let _ = reply.send(());
                }
            });
            Some(answer)
        }
        Request::FileFailed { version, failure } => {
            round.file_failed(version, &failure).await?;
            None
        }
        Request::PartsAreStored { version, start, last_start, reply } => {
            let result = round.parts_are_stored(version, start, last_start).await;
            Some(answer(reply, result)?)
        }
        Request::EventsPublished { position, reply } => {
            round.events_published(position).await?;
            Some(answer(reply, Ok(()))?)
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
        // The client may have disconnected; the change is durable all the same.
        let _ = reply.send(durable.and(result));
    }))
}
