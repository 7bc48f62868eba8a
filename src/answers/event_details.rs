//! What events say about counts. They are written in advance, and filled in when they are published.

use argus_query::{Engine, QueryError, Report};
use argus_sinks::Snapshot;

use crate::answers::answer::AnswerError;
use crate::answers::diagnosis::{Diagnoses, DiagnosisError};
use crate::domain::event::{Event, EventKind};

/// Codes that an event names.
const TOP_CODES: usize = 5;

/// Why an event could not be filled in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum EventDetailsError {
    #[error("the totals of a report could not be read")]
    Query(#[from] QueryError),
    #[error("a diagnosis could not be read")]
    Answer(#[from] AnswerError),
}

/// Fills in events. Clones are cheap.
#[derive(Clone)]
pub struct EventDetails {
    engine: Engine,
    diagnoses: Diagnoses,
}

impl EventDetails {
    /// From the engine and the diagnoses.
    pub fn new(engine: Engine, diagnoses: Diagnoses) -> EventDetails {
        EventDetails { engine, diagnoses }
    }

    /// Fills in an event that the frontier of the snapshot has passed.
    pub async fn fill(&self, event: &mut Event, snapshot: &Snapshot) -> Result<(), EventDetailsError> {
        match &mut event.kind {
            EventKind::AllFilesGathered { total_lines, error_codes } => {
                (*total_lines, *error_codes) = Report::totals(&self.engine, snapshot, event.batch_id).await?;
            }
            // That of a language model has its summary.
            EventKind::DiagnosisCompleted { summary, top_codes, .. } if summary.is_empty() => {
                match self.diagnoses.of(event.batch_id).await {
                    Ok(diagnosed) => {
                        *top_codes = diagnosed.diagnosis.top_codes(TOP_CODES);
                        *summary = diagnosed.diagnosis.summary;
                    }
                    // It was reopened or deleted since.
                    Err(DiagnosisError::NotGathered(_) | DiagnosisError::Answer(AnswerError::NoBatch(_))) => {}
                    Err(DiagnosisError::Answer(error)) => return Err(error.into()),
                }
            }
            _ => {}
        }
        Ok(())
    }
}
