//! What events say about counts. They are written in advance, and filled in when they are published.

use std::sync::Arc;

use argus_query::cache::{ComputationAborted, SingleFlight};
use argus_query::{Engine, QueryError, Report};
use argus_sinks::Snapshot;
use uuid::Uuid;

use crate::answers::answer::AnswerError;
use crate::answers::diagnosis::{Diagnoses, DiagnosisError};
use crate::domain::event::{Event, EventKind};

/// Codes that an event names.
const TOP_CODES: usize = 5;

/// Why an event could not be filled in.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum EventDetailsError {
    #[error("the totals of a report could not be read")]
    Query(#[from] Arc<QueryError>),
    #[error("a diagnosis could not be read")]
    Answer(#[from] AnswerError),
    #[error("the batch has no diagnosis any more")]
    Gone,
    #[error(transparent)]
    Aborted(#[from] ComputationAborted),
}

impl EventDetailsError {
    fn of(error: DiagnosisError) -> EventDetailsError {
        match error {
            DiagnosisError::NotGathered(_) | DiagnosisError::Answer(AnswerError::NoBatch(_)) => EventDetailsError::Gone,
            DiagnosisError::Answer(error) => error.into(),
        }
    }
}

/// Diagnoses in short that are remembered: many clients follow one batch, and each gets its diagnosis.
const REMEMBERED_MAX: u64 = 1000;

/// A diagnosis in short: its summary and its first codes.
type InShort = Arc<(String, Vec<String>)>;

/// Fills in events. Clones share what they remember.
#[derive(Clone)]
pub struct EventDetails {
    engine: Engine,
    diagnoses: Diagnoses,
    /// By the id of the event.
    remembered: SingleFlight<Uuid, InShort, EventDetailsError>,
}

impl EventDetails {
    /// From the engine and the diagnoses.
    pub fn new(engine: Engine, diagnoses: Diagnoses) -> EventDetails {
        let remembered = SingleFlight::new(REMEMBERED_MAX, |_, _| 1);
        EventDetails { engine, diagnoses, remembered }
    }

    /// Fills in an event that the frontier of the snapshot has passed.
    pub async fn fill(&self, event: &mut Event, snapshot: &Snapshot) -> Result<(), EventDetailsError> {
        match &mut event.kind {
            EventKind::AllFilesGathered { total_lines, error_codes } => {
                (*total_lines, *error_codes) =
                    Report::totals(&self.engine, snapshot, event.batch_id).await.map_err(Arc::new)?;
            }
            // That of a language model has its summary.
            EventKind::DiagnosisCompleted { summary, top_codes, .. } if summary.is_empty() => {
                let (diagnoses, batch_id) = (self.diagnoses.clone(), event.batch_id);
                let compute = || async move {
                    let diagnosis = diagnoses.of(batch_id).await.map_err(EventDetailsError::of)?.diagnosis;
                    Ok(Arc::new((diagnosis.summary.clone(), diagnosis.top_codes(TOP_CODES))))
                };
                match self.remembered.get(event.event_id, compute).await.0 {
                    Ok(in_short) => (*summary, *top_codes) = (*in_short).clone(),
                    // It was reopened or deleted since.
                    Err(EventDetailsError::Gone) => {}
                    Err(error) => return Err(error),
                }
            }
            _ => {}
        }
        Ok(())
    }
}
