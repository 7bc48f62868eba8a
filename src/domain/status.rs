//! The status of a batch, and its transitions as one pure function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The status of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchStatus {
    /// It accepts files.
    Pending,
    /// The client completed it: it accepts no more files.
    Uploaded,
    /// Its blocks are being inserted into the dataflow.
    Scattering,
    /// All its blocks are inserted, and the input has advanced past its epoch.
    Scattered,
    /// The frontier has not passed its epoch yet.
    Gathering,
    /// The frontier has passed its epoch: the report is final.
    Gathered,
    /// The diagnosis is running.
    Diagnosing,
    /// All processing is done.
    Completed,
    /// Processing failed, with a reason.
    Failed,
}

/// What can happen to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchEvent {
    /// The client has uploaded all files.
    Complete,
    /// The insertion of its blocks began.
    ScatterBegan,
    /// All its blocks are inserted.
    AllFilesScattered,
    /// The wait for the frontier began.
    GatherBegan,
    /// The frontier has passed its epoch.
    AllFilesGathered,
    /// The diagnosis began.
    DiagnosisBegan,
    /// The diagnosis ended, or there is none.
    DiagnosisCompleted,
    /// Processing failed.
    Failed,
    /// The client wants to change it again.
    Reopen,
}

/// An event that cannot happen in this status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not possible for a batch with status {status}")]
pub struct IllegalTransition {
    status: BatchStatus,
    event: BatchEvent,
}

use BatchStatus::{Completed, Diagnosing, Failed, Gathered, Gathering, Pending, Scattered, Scattering, Uploaded};

impl BatchStatus {
    /// All statuses, in the order in which a batch passes them.
    pub const ALL: [BatchStatus; 9] =
        [Pending, Uploaded, Scattering, Scattered, Gathering, Gathered, Diagnosing, Completed, Failed];

    /// Applies `event`. A repeated event changes nothing, so redelivery is
    /// harmless.
    pub fn after(self, event: BatchEvent) -> Result<BatchStatus, IllegalTransition> {
        let (from, to) = match event {
            BatchEvent::Complete => (Pending, Uploaded),
            BatchEvent::ScatterBegan => (Uploaded, Scattering),
            BatchEvent::AllFilesScattered => (Scattering, Scattered),
            BatchEvent::GatherBegan => (Scattered, Gathering),
            BatchEvent::AllFilesGathered => (Gathering, Gathered),
            BatchEvent::DiagnosisBegan => (Gathered, Diagnosing),
            BatchEvent::DiagnosisCompleted => (Diagnosing, Completed),
            BatchEvent::Failed => match self {
                Scattering | Gathering | Diagnosing | Failed => return Ok(Failed),
                _ => return Err(IllegalTransition { status: self, event }),
            },
            BatchEvent::Reopen => match self {
                Pending | Completed | Failed => return Ok(Pending),
                _ => return Err(IllegalTransition { status: self, event }),
            },
        };
        match self {
            Failed => Err(IllegalTransition { status: self, event }),
            _ if self == from => Ok(to),
            // Every later status has already passed this event.
            _ if self >= to => Ok(self),
            _ => Err(IllegalTransition { status: self, event }),
        }
    }

    /// Whether the report is final: the frontier has passed the batch's epoch.
    pub fn is_gathered(self) -> bool {
        matches!(self, Gathered | Diagnosing | Completed)
    }

    /// Whether the status changes only on a request.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Pending | Completed | Failed)
    }

    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Pending => "pending",
            Uploaded => "uploaded",
            Scattering => "scattering",
            Scattered => "scattered",
            Gathering => "gathering",
            Gathered => "gathered",
            Diagnosing => "diagnosing",
            Completed => "completed",
            Failed => "failed",
        }
    }
}

impl fmt::Display for BatchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An unknown status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown batch status {0:?}; use one of {words}", words = BatchStatus::ALL.map(BatchStatus::as_str).join(", "))]
pub struct UnknownStatus(String);

impl FromStr for BatchStatus {
    type Err = UnknownStatus;

    fn from_str(word: &str) -> Result<BatchStatus, UnknownStatus> {
        BatchStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or_else(|| UnknownStatus(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_ORDER: [BatchEvent; 7] = [
        BatchEvent::Complete,
        BatchEvent::ScatterBegan,
        BatchEvent::AllFilesScattered,
        BatchEvent::GatherBegan,
        BatchEvent::AllFilesGathered,
        BatchEvent::DiagnosisBegan,
        BatchEvent::DiagnosisCompleted,
    ];

    #[test]
    fn a_batch_passes_every_status_in_order() {
        let mut status = Pending;
        for (event, expected) in IN_ORDER.into_iter().zip(&BatchStatus::ALL[1..8]) {
            status = status.after(event).expect("the event is next");
            assert_eq!(status, *expected);
        }
    }

    #[test]
    fn a_repeated_event_changes_nothing_and_an_early_one_is_rejected() {
        for (index, status) in BatchStatus::ALL[..8].iter().enumerate() {
            for (number, event) in IN_ORDER.into_iter().enumerate() {
                let after = status.after(event);
                match number.cmp(&index) {
                    std::cmp::Ordering::Less => assert_eq!(after, Ok(*status)),
                    std::cmp::Ordering::Equal => assert_eq!(after, Ok(BatchStatus::ALL[index + 1])),
                    std::cmp::Ordering::Greater => assert!(after.is_err()),
                }
            }
        }
    }

    #[test]
    fn only_a_batch_in_progress_can_fail_and_a_failed_one_stays_failed() {
        for status in BatchStatus::ALL {
            let fails = matches!(status, Scattering | Gathering | Diagnosing | Failed);
            assert_eq!(status.after(BatchEvent::Failed).is_ok(), fails, "{status}");
        }
        assert!(Failed.after(BatchEvent::Complete).is_err());
    }

    #[test]
    fn only_a_pending_completed_or_failed_batch_can_be_reopened() {
        for status in BatchStatus::ALL {
            assert_eq!(status.after(BatchEvent::Reopen).is_ok(), status.is_at_rest(), "{status}");
        }
    }

    #[test]
    fn every_status_is_parsed_from_its_name() {
        for status in BatchStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("open".parse::<BatchStatus>().is_err());
    }
}
